"""A training in its own process, or in several: `python -m thrifty.compress.distill.worker FOLDER`.

It reads FOLDER/job.json and writes the weights to FOLDER/trained.safetensors and a report to
FOLDER/report.json. Each line of output is a JSON object: `{"progress": [step, done, total, unit]}`,
or `{"error": ...}` as the last one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
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
from thrifty.compress.distill.train import Objective, Trainer, write_tensors
from thrifty.compress.distill.training_examples import (
    CachedExamples,
    LiveExamples,
    TextExamples,
    TrainingExamples,
)
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
        model = load_student(Path(job["student"]), training)
        trained = Student(model)
        examples = _open_examples(folder, job, training)
        wanted = job["held_out_tokens"] // max(1, examples.window)
        held_out = max(1, min(wanted, examples.count // 10))
        objective = NextTokens(examples, held_out, training, job.get("layers"))
    trainer = Trainer(trained, objective, training, folder, accelerator)
    report_progress = _send_progress if accelerator.is_main_process else (lambda _: None)
    state = trainer.run(report_progress)
    if not accelerator.is_main_process:
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
    }  # fmt: skip
    write_atomically(folder / "report.json", json.dumps(report))


def load_student(folder: Path, training: Training, kind: str = "AutoModelForCausalLM") -> Any:
    """The model in `folder`, with gradients only for the weights that are trained."""
    model = load_torch_model(folder, f"the model in {folder}", kind)
    if training.lora_rank:
        lora.attach(model, training.lora_rank, training.seed)
    elif training.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if training.checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _open_examples(folder: Path, job: dict[str, Any], training: Training) -> TrainingExamples:
    if "kept" in job:
        return CachedExamples(open_record(Path(job["kept"])))
    if "texts" in job:
        lines = [json.loads(line) for line in (folder / job["texts"]).read_bytes().splitlines()]
        lines = [line for line in lines if len(line["tokens"]) > line["first"] + 1]
        texts = [np.array(line["tokens"], np.int64) for line in lines]
        return TextExamples(texts, job["window"], [line["first"] for line in lines])
    live = job["live"]
    teacher = open_model(
        live["teacher"], Store(Path(live["store"])), exact=True, backend=live["backend"]
    )
    windows = np.load(folder / "windows.npy", mmap_mode="r", allow_pickle=False)
    return LiveExamples(teacher, windows, live["k"], hidden=training.hidden > 0)


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
