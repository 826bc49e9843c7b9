"""A training in its own process, or in several: `python -m thrifty.compress.distill.worker FOLDER`.

It reads FOLDER/job.json and writes the weights to FOLDER/trained.safetensors and a report to
FOLDER/report.json. Each line of output is a JSON object: `{"progress": [step, done, total, unit]}`,
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

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from thrifty.artifacts import Store
from thrifty.artifacts.disk import lock_file
from thrifty.compress.distill import lora
from thrifty.compress.distill.next_tokens import NextTokens
from thrifty.compress.distill.settings import Training
from thrifty.compress.distill.student import Student
from thrifty.compress.distill.teaching import read_lines
from thrifty.compress.distill.train import Trainer, write_tensors
from thrifty.compress.distill.training_examples import (
    LinePieces,
    LiveTeacher,
    Part,
    Pieces,
    RecordedPieces,
    TrainingExamples,
)
from thrifty.compress.distill.training_state import Limits, Objective
from thrifty.engines.machine import detect_machine
from thrifty.errors import ThriftyError
from thrifty.evaluate.open_model import open_model
from thrifty.evaluate.reference import open_record
from thrifty.evaluate.torch_model import load_torch_model
from thrifty.files import write_atomically
from thrifty.types import Family, Progress

FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def main() -> None:
    """Train and report the outcome."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    threading.Thread(target=_end_with, args=(job["pid"],), daemon=True).start()
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


def train(folder: Path, job: dict[str, Any]) -> None:
    """Run a job."""
    training = Training(**job["training"])
    on_gpu = torch.cuda.is_available()
    fast = on_gpu or bool(FAST_BFLOAT16 & detect_machine().features)
    precision = "bf16" if fast else "no"
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision=precision)
    set_seed(training.seed)
    objective: Objective
    if job["family"] == Family.ENCODER.value:
        from thrifty.compress.distill.embeddings import make_objective

        model, objective = make_objective(job, training)
        trained = model
    else:
        model = load_student(
            Path(job["student"]), training, freeze_embeddings=training.freezes_embeddings
        )
        trained = Student(model)
        examples = _open_examples(job, training)
        held_out = examples.choose_held_out(job["held_out_tokens"], job["held_out_share"])
        objective = NextTokens(examples, held_out, training, job.get("layers"))
    trainer = Trainer(trained, objective, training, folder, accelerator)
    main = accelerator.is_main_process
    report_progress = _send_progress if main else (lambda _: None)
    tell: Callable[[str], None] = (lambda text: _send(note=text)) if main else (lambda _: None)
    ended = trainer.run(report_progress, tell, Limits(**job.get("limits", {})))
    state = trainer.state
    if not main or not ended:
        return
    if training.lora_rank:
        lora.merge(model)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    weights = {
        name: tensor.detach().float().cpu()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    write_tensors(folder / "trained.safetensors", weights)
    report = {
        **asdict(state), "best": state.best, "unit": objective.unit, "precision": precision,
        "batch_tokens": trainer.batch_tokens, "learning_rate": trainer.learning_rate,
        "device": str(accelerator.device), "processes": accelerator.num_processes,
        "schedule": "constant" if training.averages else "cosine",
    }  # fmt: skip
    write_atomically(folder / "report.json", json.dumps(report))


def load_student(
    folder: Path,
    training: Training,
    kind: str = "AutoModelForCausalLM",
    *,
    freeze_embeddings: bool | None,
) -> Any:
    """The model in `folder`, with gradients only for the weights that are trained."""
    model = load_torch_model(folder, f"the model in {folder}", kind)
    if training.lora_rank:
        lora.attach(model, training.lora_rank, training.seed)
    elif freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if training.checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _open_examples(job: dict[str, Any], training: Training) -> TrainingExamples:
    live = _open_live(job, training) if "live" in job else None
    parts = []
    for one in job["parts"]:
        if "record" in one:
            pieces: Pieces = RecordedPieces(open_record(Path(one["record"])))
        else:
            lines = read_lines(Path(one["lines"]))
            texts = [np.array(line["tokens"], np.int64) for line in lines]
            pieces = LinePieces(texts, [line["first"] for line in lines], live)
        parts.append(Part(one["domain"], pieces, one["ends"]))
    has_teacher = live is not None or any("record" in one for one in job["parts"])
    return TrainingExamples(parts, job["window"], has_teacher=has_teacher, live=live)


def _open_live(job: dict[str, Any], training: Training) -> LiveTeacher:
    live = job["live"]
    teacher = open_model(
        live["teacher"], Store(Path(live["store"])), exact=True, backend=live["backend"]
    )
    return LiveTeacher(teacher, live["k"], hidden=training.hidden > 0)


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


if __name__ == "__main__":
    main()
