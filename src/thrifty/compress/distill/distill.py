"""Distill a student from a teacher: from two models and a mix of text to a registered checkpoint.

The teacher answers prompts and its predictions are recorded, beforehand or during the training. The
training runs in a process of its own (`worker`), or in one process for each GPU; in what order
these work for a number of minutes is decided by `budget`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.sources import fetch_model
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
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.errors import CompressionError
from thrifty.evaluate.answers import ServeModel
from thrifty.evaluate.backends import DEFAULT_BACKEND
from thrifty.home import Home
from thrifty.train.figures import summarize
from thrifty.train.process import read_report, require_memory, require_training, run_worker
from thrifty.train.register import register_trained
from thrifty.types import Family, OnProgress, ignore_progress

WORKER = "thrifty.compress.distill.worker"
HELD_OUT_SHARE = 0.1
"""At most this share of each text is held out, for evaluation during training."""


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
    job["at_once"] = require_memory(
        inputs.shape, artifact.description.parameters, Training(**job["training"]), window
    )
    # A training in minutes is the same training whatever their number.
    same = {**recipe, "minutes": None} if training.minutes is not None else recipe
    key = hashlib.sha256(json.dumps([plain[1].id, same], sort_keys=True).encode()).hexdigest()
    folder = home.trainings / key[:24]
    job["folder"] = str(folder)
    job["held_out_share"] = HELD_OUT_SHARE

    def run() -> dict[str, Any]:
        return run_worker(WORKER, job, folder, request.processes, on_progress, on_note)

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
        found = register_trained(store, plain, weights, request.out, recipe, figures, on_progress)
    if training.minutes is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        remove_ended(home.trainings, keep=KEPT)
    return found


def _summarize(found: dict[str, Any], job: dict[str, Any], text: Mix) -> dict[str, Any]:
    """The figures of the lineage."""
    domains = {
        name: {"before": round(curve[0][1], 6), "after": round(curve[-1][1], 6)}
        for name, curve in found["curves"].items()
        if name
    }
    figures = {
        **summarize(found), "domains": domains, "answers": job.get("answers", {}),
        "left_out": {one.name: len(one.left_out) for one in text.sources if one.left_out},
    }  # fmt: skip
    if "budget" in found:
        figures["budget"] = found["budget"]
    return figures
