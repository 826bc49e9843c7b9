"""Distil a student from a teacher: from two models and a text to a registered checkpoint.

The teacher's words are kept beforehand or asked for while the student learns; the training itself runs in a
process of its own (`worker`), or in one for each GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
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
from thrifty.compress.distill.learning import ENCODER_WINDOW, WINDOW, Learning
from thrifty.compress.distill.settings import Training
from thrifty.engines.machine import available_memory_bytes
from thrifty.engines.openvino.prepare import write_tokenizer
from thrifty.errors import CompressionError
from thrifty.evaluate.backends import DEFAULT_BACKEND
from thrifty.evaluate.plain_checkpoint import make_plain
from thrifty.types import Family, OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""For glibc: memory that was freed is kept for what comes next. Handing large arrays back to the system and
taking them anew at every operation takes longer than the arithmetic.
"""
PACKAGES = ("torch", "transformers", "accelerate", "safetensors")


def require_training() -> None:
    """Raise `CompressionError` where what training needs is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise CompressionError(
            f"training needs {', '.join(missing)}, which is not installed: "
            "pip install 'thrifty[compress]'"
        )


def distill_model(
    store: Store,
    student: str,
    teacher: str | RemoteTeacher,
    *,
    text: Path,
    out: str,
    training: Training,
    references: Path,
    work: Path,
    held_out: Path | None = None,
    window: int | None = None,
    live: bool = False,
    backend: str = DEFAULT_BACKEND,
    processes: int = 1,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact]:
    """The student, trained to say what the teacher says, registered as `out`. Blocks.

    Args:
        store: Where models are kept.
        student: What to train: a checkpoint, decoder or encoder.
        teacher: What it learns from: anything that `open_model` takes, with the same tokens; or where one is
            served, which then teaches by what it writes.
        text: Text to learn on; for a teacher that is served also `.jsonl` with prompts.
        out: The new model's name.
        training: How.
        references: Where the teacher's log-probabilities are kept.
        work: Where checkpoints of trainings are kept, each in a folder of its own.
        held_out: Text that the result will be judged by, which the other must not hold.
        window: Tokens that are read together; 512 for decoders, at most 256 for encoders.
        live: Ask the teacher while training instead of keeping its words beforehand.
        backend: What a live teacher runs on, `openvino` or `torch`.
        processes: How many train together: one for each GPU.
        on_progress: Told of every step.

    Raises `CompressionError`, `EvaluationError`, and what the store raises. What was killed goes on from
    its last checkpoint when it is asked for again.
    """
    require_training()
    if held_out is not None:
        check_no_overlap(text, held_out)
    version, artifact = fetch_model(store, student, on_progress=on_progress)
    plain = make_plain(store, version, artifact, on_progress)
    encoder = artifact.description.family is Family.ENCODER
    window = window or (ENCODER_WINDOW if encoder else WINDOW)
    if training.hidden:
        backend = "torch"
    learn = Learning(store, plain, text, training, window, references, on_progress)
    with contextlib.closing(learn):
        job, recipe = learn.plan(teacher, backend if live or training.needs_live_teacher else None)
        made = store.find_made(plain[1].id, recipe)
        if made is not None and made[0].name == out:
            return made
        # Before the teacher says anything, which may take hours.
        _require_memory(learn.shape, artifact.description.parameters, job, window)
        key = hashlib.sha256(json.dumps([plain[1].id, recipe], sort_keys=True).encode()).hexdigest()
        folder = work / key[:24]
        job["folder"] = str(folder)
        with lock_file(folder / "lock"):
            learn.write_inputs(job, folder)
            report = _run(job, folder, processes, on_progress)
            weights = SafetensorsFiles([folder / "trained.safetensors"])
            found = _register(store, plain, weights, out, recipe, report, on_progress)
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
    """The student with its trained weights, as a model in the store."""
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
    """Train in processes of their own, unless that is done. Raises `CompressionError`."""
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
    """Pass the worker's progress on; the error that it tells, if any."""
    error = None
    assert process.stdout is not None
    for line in process.stdout:
        try:
            told = json.loads(line)
        except ValueError:
            continue  # a library's own words
        if not isinstance(told, dict):
            continue
        if "progress" in told:
            on_progress(Progress(*told["progress"]))
        error = told.get("error", error)
    process.wait()
    return error


def _explain(code: int, folder: Path) -> str:
    last = (folder / "worker.log").read_text(errors="replace").strip().splitlines()[-3:]
    if code in (-9, 137):
        why = "it was killed, as a system does that runs out of memory"
    else:
        why = f"it ended with {code}: " + " ".join(last)
    return f"the training broke off: {why}. Asked for again, it goes on from the last checkpoint in {folder}"


def _has_gpus(count: int) -> bool:
    import torch

    return bool(torch.cuda.device_count() >= count)


def _require_memory(
    shape: DecoderShape | EncoderShape, parameters: int, job: dict[str, Any], window: int
) -> None:
    """Raise where too little is free. Counted are weights, gradients and two moments in float32, and what layers
    keep of each token for the way back: some seventy bytes a channel, ten for each pair of tokens and head.
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
            f"{format_bytes(free)} are free; train a change of low rank (--lora-rank 16), with "
            "--checkpointing, or a smaller model"
        )
