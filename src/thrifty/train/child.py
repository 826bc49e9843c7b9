"""The process that a training runs in, seen from inside.

It reads FOLDER/job.json and writes the weights to FOLDER/trained.safetensors, with
`"adapter": true` in the job only the low-rank changes, and a report to FOLDER/report.json. Each
line of output is a JSON object: `{"progress": [step, done, total, unit]}`,
`{"note": ...}` for what people should read, or `{"error": ...}` as the last one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.lora import read_lora
from thrifty.engines.machine import detect_machine
from thrifty.errors import ThriftyError, TrainingError
from thrifty.evaluate.torch_model import load_torch_model
from thrifty.files import write_atomically
from thrifty.train import lora
from thrifty.train.loop import Trainer, write_tensors
from thrifty.train.process import PARENT
from thrifty.train.settings import IMPROVED_NOTHING, LoopSettings
from thrifty.train.state import Limits, Objective
from thrifty.types import Progress

FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})

Prepared = tuple[Any, Any, Objective]
"""The model, what the loop trains of it (itself, or a wrapper), and what it learns."""


def run_child(train: Callable[[Path, dict[str, Any]], None]) -> None:
    """Run `train` on the folder that the command line names, and report how it ended."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    parent = int(os.environ.get(PARENT, job["pid"]))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    first = os.environ.get("RANK", "0") == "0"
    try:
        # A worker that lost its parent may still be writing, until it notices.
        with lock_file(folder / "worker.lock") if first else nullcontext():
            train(folder, job)
    except ThriftyError as error:
        _send(error=str(error))
        sys.exit(1)
    except (torch.OutOfMemoryError, MemoryError) as error:
        first_line = str(error).partition("\n")[0]
        advice = "try a smaller --micro-batch, --checkpointing, or --lora-rank 16"
        _send(error=f"out of memory: {first_line}; {advice}. It resumes from the last checkpoint")
        sys.exit(1)


def run_job(
    folder: Path,
    job: dict[str, Any],
    settings: LoopSettings,
    prepare: Callable[[], Prepared],
    name: str,
    use: Callable[[Any, Any], None] | None = None,
) -> None:
    """Train what `prepare` gives until it ends or the job's limits pause it; then write the weights
    and the report. `name` is what progress calls it. With `use`, that is called with the model and
    its device instead, also where the training improved nothing.
    """
    on_gpu = torch.cuda.is_available()
    fast = on_gpu or bool(FAST_BFLOAT16 & detect_machine().features)
    precision = "bf16" if fast else "no"
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
    set_seed(settings.seed)
    model, trained, objective = prepare()
    trainer = Trainer(
        trained, objective, settings, folder, accelerator, name, at_once=job.get("at_once", 1)
    )
    main = accelerator.is_main_process
    report_progress = _send_progress if main else (lambda _: None)
    tell: Callable[[str], None] = (lambda text: _send(note=text)) if main else (lambda _: None)
    try:
        ended = trainer.run(report_progress, tell, Limits(**job.get("limits", {})))
    except TrainingError as error:
        if use is None or not str(error).startswith(IMPROVED_NOTHING):
            raise
        ended = True
    if use is not None and ended:
        if main:
            trainer.apply(use)
        return
    state = trainer.state
    if not main or not ended:
        return
    weights = lora.extract(model) if job.get("adapter") else _read_weights(model, settings)
    write_tensors(folder / "trained.safetensors", weights)
    report = {
        **asdict(state), "best": state.best, "unit": objective.unit, "precision": precision,
        "batch_tokens": trainer.batch_tokens, "learning_rate": trainer.learning_rate,
        "device": str(accelerator.device), "processes": accelerator.num_processes,
        "schedule": settings.described_schedule,
    }  # fmt: skip
    write_atomically(folder / "report.json", json.dumps(report))


def _read_weights(model: Any, settings: LoopSettings) -> dict[str, Any]:
    """All weights, with the low-rank changes merged into them."""
    if settings.lora_rank:
        lora.merge(model)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    return {
        name: tensor.detach().float().cpu()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def load_trained(
    folder: Path,
    settings: LoopSettings,
    kind: str = "AutoModelForCausalLM",
    *,
    freeze_embeddings: bool | None,
    changes: str | None = None,
) -> Any:
    """The model in `folder`, with gradients only for the weights that are trained. `changes` is the
    folder of an adapter that it begins with.
    """
    model = load_torch_model(folder, f"the model in {folder}", kind)
    if changes is not None:
        lora.add(model, read_lora(Path(changes)))
    if settings.lora_rank:
        lora.attach(model, settings.lora_rank, settings.seed)
    elif freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if settings.checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _send(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _send_progress(progress: Progress) -> None:
    _send(progress=[progress.step, progress.done, progress.total, progress.unit])


def _end_with(pid: int) -> None:
    """Exit when the process that started the training ends; the checkpoints stay."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.5)
    os._exit(1)
