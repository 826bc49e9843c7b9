"""Distill a student from a teacher: from two models and a mix of text to a registered checkpoint.

The teacher answers prompts and its predictions are recorded, beforehand or during the training. The
training runs in a process of its own (`worker`), or in one process for each GPU; in what order
these work for a number of minutes is decided by `budget`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.compress.distill.answers import RemoteTeacher
from thrifty.compress.distill.kept_trainings import KEPT, remove_ended
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.training_inputs import (
    ENCODER_WINDOW,
    HELD_OUT_TOKENS,
    WINDOW,
    TrainingInputs,
)
from thrifty.compress.mix import Mix, Text, as_mix
from thrifty.compress.overlap import check_no_overlap
from thrifty.engines.machine import available_memory_bytes
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.errors import CompressionError
from thrifty.evaluate.answers import ServeModel
from thrifty.evaluate.backends import DEFAULT_BACKEND
from thrifty.files import write_atomically
from thrifty.home import Home
from thrifty.types import Family, OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""Settings for glibc: keep freed memory for reuse. Returning large arrays to the system and
requesting them again at every operation takes longer than the arithmetic.
"""
HELD_OUT_SHARE = 0.1
"""At most this share of each text is held out, for evaluation during training."""
PACKAGES = ("torch", "transformers", "accelerate", "safetensors")


@dataclass(frozen=True)
class DistillationRequest:
    """Which student learns from which teacher, on what, and how."""

    student: str
    """The checkpoint to train, a decoder or an encoder."""
    teacher: str | RemoteTeacher
    """Any model with the same vocabulary that `open_model` accepts, or a server's URL. A served
    teacher contributes the text that it generates."""
    text: Text
    """The training text: a file, or a mix."""
    out: str
    """The new model's name."""
    training: Training
    held_out: Path | Sequence[Path] | None = None
    """What the result will be evaluated on; it must not overlap `text`."""
    window: int | None = None
    """Tokens in a window. Default: 512 for decoders, at most 256 for encoders."""
    live: bool = False
    """Query the teacher during training instead of recording its predictions beforehand."""
    backend: str = DEFAULT_BACKEND
    """What runs a live teacher: `openvino` or `torch`."""
    processes: int = 1
    """How many processes train together: one for each GPU."""
    resume: bool = False
    """Extend a training in minutes that has ended: `training.minutes` counts those that it had."""
    extend: bool = False
    """Extend such a training if there is one, else begin."""
    serve: ServeModel | None = field(default=None, compare=False)
    """Serves a teacher on this machine, which then answers prompts; None: it is not asked."""


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
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[NamedVersion, Artifact]:
    """Train a student to predict what its teacher predicts; register it as `request.out`. Blocks.

    `home` stores the teacher's answers and predictions and the checkpoints of the training; the
    same request resumes a training that was killed. `on_note` is told what people should read: the
    teacher's cost, and where each domain will end. Raises `CompressionError`, `EvaluationError` and
    the store's errors.
    """
    from thrifty.compress.distill.budget import train_for_minutes

    began_s = time.monotonic()
    require_training()
    training = request.training
    text = as_mix(request.text)
    held_out = request.held_out
    for judged in (held_out,) if isinstance(held_out, Path) else held_out or ():
        check_no_overlap(text, judged)
    version, artifact = fetch_model(store, request.student, on_progress=on_progress)
    plain = make_plain(store, version, artifact, on_progress)
    encoder = artifact.description.family is Family.ENCODER
    if encoder and training.minutes is not None:
        raise CompressionError("an encoder is trained for a number of tokens; set --tokens")
    if request.resume and training.minutes is None:
        raise CompressionError("only a training in minutes can be extended; set --minutes")
    window = request.window or (ENCODER_WINDOW if encoder else WINDOW)
    backend = "torch" if training.hidden else request.backend
    live = request.live or training.needs_live_teacher
    inputs = TrainingInputs(
        store, plain, text, training, window, home.evaluations, on_progress, on_note
    )
    job, recipe = inputs.plan(request.teacher, backend if live else None, request.serve)
    made = store.find_made(plain[1].id, recipe)
    if made is not None and made[0].name == request.out:
        return made
    # Checked before the teacher runs, which may take hours.
    _require_memory(inputs.shape, artifact.description.parameters, job, window)
    # A training in minutes is the same training whatever their number.
    same = {**recipe, "minutes": None} if training.minutes is not None else recipe
    key = hashlib.sha256(json.dumps([plain[1].id, same], sort_keys=True).encode()).hexdigest()
    folder = home.trainings / key[:24]
    job["folder"] = str(folder)
    job["held_out_share"] = HELD_OUT_SHARE

    def run() -> dict[str, Any]:
        return run_worker(job, folder, request.processes, on_progress, on_note)

    with lock_file(folder / "lock"):
        if training.minutes is not None:
            report = train_for_minutes(
                inputs, job, folder, training, run, resume=request.resume, extend=request.extend, began_s=began_s,
                on_note=on_note,
            )  # fmt: skip
        else:
            ended = read_report(folder)
            inputs.extend(job, folder, (training.tokens or 0) + HELD_OUT_TOKENS)
            report = ended or run()
        weights = SafetensorsFiles([folder / "trained.safetensors"])
        figures = _summarize(report, job, text)
        found = _register(store, plain, weights, request.out, recipe, figures, on_progress)
    if training.minutes is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        remove_ended(home.trainings, keep=KEPT)
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


def run_worker(
    job: dict[str, Any],
    folder: Path,
    processes: int,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Train in separate processes, until the job's limits; returns the report, or nothing if the
    training paused. Raises `CompressionError`.
    """
    write_atomically(folder / "job.json", json.dumps(job))
    (folder / "report.json").unlink(missing_ok=True)
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
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment) as process,
    ):
        try:
            error = _follow(process, on_progress, on_note)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise CompressionError(error or _explain(process.returncode, folder))
    return read_report(folder) or {}


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of a training that has ended; None if there is none."""
    report, weights = folder / "report.json", folder / "trained.safetensors"
    if not report.exists() or not weights.exists():
        return None
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _summarize(found: dict[str, Any], job: dict[str, Any], text: Mix) -> dict[str, Any]:
    """The figures of the lineage."""
    held_out = found["held_out"]
    domains = {
        name: {"before": round(curve[0][1], 6), "after": round(curve[-1][1], 6)}
        for name, curve in found["curves"].items()
        if name
    }
    figures = {
        "steps": found["step"], "tokens": found["tokens"], "before": held_out[0][1],
        "after": found["best"], "best_step": found["best_step"], "unit": found["unit"],
        "batch_tokens": found["batch_tokens"], "learning_rate": found["learning_rate"],
        "schedule": found["schedule"], "precision": found["precision"],
        "device": found["device"], "seconds": round(found["seconds"], 1),
        "losses": [round(loss, 5) for loss in found["losses"]],
        "held_out": [[step, round(value, 6)] for step, value in held_out],
        "domains": domains, "curves": found["curves"], "forecasts": found["forecasts"],
        "answers": job.get("answers", {}),
        "left_out": {one.name: len(one.left_out) for one in text.sources if one.left_out},
    }  # fmt: skip
    if "budget" in found:
        figures["budget"] = found["budget"]
    return figures


def _follow(
    process: subprocess.Popen[bytes], on_progress: OnProgress, on_note: Callable[[str], None]
) -> str | None:
    """Forward the worker's progress and notes; returns the error that it reports, if any."""
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
        if "note" in message:
            on_note(message["note"])
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
    weights = parameters * (4.5 if training.lora_rank else 20 if training.averages else 16)
    needed = round(weights + training.micro_batch * kept)
    free = available_memory_bytes()
    if needed > free:
        raise CompressionError(
            f"training {parameters:,} parameters needs about {format_bytes(needed)} of memory, and "
            f"{format_bytes(free)} are free; use LoRA (--lora-rank 16), --checkpointing, or a "
            "smaller model"
        )
