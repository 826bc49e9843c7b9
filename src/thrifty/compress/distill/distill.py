"""Distill a student from a teacher: from two models and a text to a registered checkpoint.

The teacher's predictions are recorded beforehand or computed during training. The training runs in
a process of its own (`worker`), or in one process for each GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import (
    DecoderCheckpoint,
    DecoderShape,
    EncoderCheckpoint,
    EncoderShape,
    load_decoder,
    load_encoder,
)
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.compress.calibration import check_no_overlap
from thrifty.compress.distill.answers import RemoteTeacher
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.training_inputs import ENCODER_WINDOW, WINDOW, TrainingInputs
from thrifty.engines.machine import available_memory_bytes
from thrifty.engines.openvino.prepare import write_tokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate.backends import DEFAULT_BACKEND
from thrifty.evaluate.plain_checkpoint import make_plain
from thrifty.home import Home
from thrifty.types import Family, OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""Settings for glibc: keep freed memory for reuse. Returning large arrays to the system and
requesting them again at every operation takes longer than the arithmetic.
"""
PACKAGES = ("torch", "transformers", "accelerate", "safetensors")


@dataclass(frozen=True)
class DistillationRequest:
    """Which student learns from which teacher, on what, and how."""

    student: str
    """The checkpoint to train, a decoder or an encoder."""
    teacher: str | RemoteTeacher
    """Any model with the same vocabulary that `open_model` accepts, or a server's URL. A served
    teacher contributes the text that it generates."""
    text: Path
    """The training text; for a served teacher also `.jsonl` with prompts."""
    out: str
    """The new model's name."""
    training: Training
    held_out: Path | None = None
    """The text that the result will be evaluated on; it must not overlap `text`."""
    window: int | None = None
    """Tokens in a window. Default: 512 for decoders, at most 256 for encoders."""
    live: bool = False
    """Query the teacher during training instead of recording its predictions beforehand."""
    backend: str = DEFAULT_BACKEND
    """What runs a live teacher: `openvino` or `torch`."""
    processes: int = 1
    """How many processes train together: one for each GPU."""


def require_training() -> None:
    """Raise `CompressionError` if the packages that training needs are not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise CompressionError(
            f"training needs {', '.join(missing)}, which is not installed: "
            "pip install 'thrifty[compress]'"
        )


def distill_model(
    store: Store,
    home: Home,
    request: DistillationRequest,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact]:
    """Train a student to predict what its teacher predicts; register it as `request.out`. Blocks.

    `home` stores the teacher's recorded predictions and the checkpoints of the training; the same
    request resumes a training that was killed. Raises `CompressionError`, `EvaluationError` and the
    store's errors.
    """
    require_training()
    training = request.training
    if request.held_out is not None:
        check_no_overlap(request.text, request.held_out)
    version, artifact = fetch_model(store, request.student, on_progress=on_progress)
    plain = make_plain(store, version, artifact, on_progress)
    encoder = artifact.description.family is Family.ENCODER
    window = request.window or (ENCODER_WINDOW if encoder else WINDOW)
    backend = "torch" if training.hidden else request.backend
    live = request.live or training.needs_live_teacher
    inputs = TrainingInputs(
        store, plain, request.text, training, window, home.evaluations, on_progress
    )
    with contextlib.closing(inputs):
        job, recipe = inputs.plan(request.teacher, backend if live else None)
        made = store.find_made(plain[1].id, recipe)
        if made is not None and made[0].name == request.out:
            return made
        # Checked before the teacher runs, which may take hours.
        _require_memory(inputs.shape, artifact.description.parameters, job, window)
        key = hashlib.sha256(json.dumps([plain[1].id, recipe], sort_keys=True).encode()).hexdigest()
        folder = home.trainings / key[:24]
        job["folder"] = str(folder)
        with lock_file(folder / "lock"):
            inputs.write(job, folder)
            report = _run(job, folder, request.processes, on_progress)
            weights = SafetensorsFiles([folder / "trained.safetensors"])
            found = _register(store, plain, weights, request.out, recipe, report, on_progress)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _register(
    store: Store,
    plain: tuple[NamedVersion, Artifact],
    weights: SafetensorsFiles,
    out: str,
    recipe: dict[str, Any],
    report: dict[str, Any],
    on_progress: OnProgress,
) -> tuple[NamedVersion, Artifact]:
    """Add the student with its trained weights to the store."""
    version, artifact = plain
    source = store.folder_of(artifact.id)
    store.require_space(2 * artifact.description.parameters + 50_000_000, f"training {out}")
    with store.stage(f"distill {artifact.id} {json.dumps(recipe, sort_keys=True)}") as stage:
        target = stage / "model"
        shutil.rmtree(target, ignore_errors=True)
        if artifact.description.family is Family.ENCODER:
            write_encoder(EncoderCheckpoint(load_encoder(source).shape, weights), source, target)
        else:
            write_decoder(DecoderCheckpoint(load_decoder(source).shape, weights), target)
            write_tokenizer(source, target, artifact)
        parent = Parent(artifact.id, version.label)
        lineage = Lineage(parents=(parent,), recipe=recipe, figures=report)
        return store.add(target, out, lineage, on_progress=on_progress)


def _run(
    job: dict[str, Any], folder: Path, processes: int, on_progress: OnProgress
) -> dict[str, Any]:
    """Train in separate processes, unless the result exists. Raises `CompressionError`."""
    report = folder / "report.json"
    if not report.exists():
        command = [sys.executable, "-m", "thrifty.compress.distill.worker", str(folder)]
        if processes > 1:
            command[1:1] = [
                "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes",
                str(processes), "--multi_gpu" if _has_gpus(processes) else "--cpu",
            ]  # fmt: skip
        environment = {
            **KEEP_MEMORY,
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with (
            (folder / "worker.log").open("ab") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment
            ) as process,
        ):
            try:
                error = _follow(process, on_progress)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise CompressionError(error or _explain(process.returncode, folder))
    found = json.loads(report.read_text())
    held_out = found["held_out"]
    return {
        "steps": found["step"], "tokens": found["tokens"], "before": held_out[0][1],
        "after": found["best"], "best_step": found["best_step"], "unit": found["unit"],
        "batch_tokens": found["batch_tokens"], "learning_rate": found["learning_rate"],
        "precision": found["precision"], "device": found["device"],
        "losses": [round(loss, 5) for loss in found["losses"]],
        "held_out": [[step, round(value, 6)] for step, value in held_out],
    }  # fmt: skip


def _follow(process: subprocess.Popen[bytes], on_progress: OnProgress) -> str | None:
    """Forward the worker's progress; returns the error that it reports, if any."""
    error = None
    assert process.stdout is not None
    for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a library's own output
        if not isinstance(message, dict):
            continue
        if "progress" in message:
            on_progress(Progress(*message["progress"]))
        error = message.get("error", error)
    process.wait()
    return error


def _explain(code: int, folder: Path) -> str:
    last = (folder / "worker.log").read_text(errors="replace").strip().splitlines()[-3:]
    if code in (-9, 137):
        reason = "it was killed, probably because the system ran out of memory"
    else:
        reason = f"it exited with {code}: " + " ".join(last)
    return f"the training stopped: {reason}. The same command resumes from the last checkpoint in {folder}"


def _has_gpus(count: int) -> bool:
    import torch

    return bool(torch.cuda.device_count() >= count)


def _require_memory(
    shape: DecoderShape | EncoderShape, parameters: int, job: dict[str, Any], window: int
) -> None:
    """Raise `CompressionError` if too little memory is free.

    Counted are the weights, the gradients and the optimizer's two moments in float32, and the
    activations that layers keep for the backward pass: about 70 bytes for each token and channel,
    and 10 bytes for each head and pair of tokens.
    """
    training = Training(**job["training"])
    kept = window * 70 * shape.hidden_size + 10 * shape.heads * window**2
    if training.checkpointing:
        kept += (shape.layers - 1) * window * 4 * shape.hidden_size
    else:
        kept *= shape.layers
    weights = parameters * (16 if not training.lora_rank else 4.5)
    needed = round(weights + training.micro_batch * kept)
    free = available_memory_bytes()
    if needed > free:
        raise CompressionError(
            f"training {parameters:,} parameters needs about {format_bytes(needed)} of memory, and "
            f"{format_bytes(free)} are free; use LoRA (--lora-rank 16), --checkpointing, or a "
            "smaller model"
        )
