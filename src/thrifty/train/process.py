"""The process that a training runs in, seen from outside: started, followed, and its report read.

PyTorch is imported there alone. The folder of a training holds its job, its checkpoints and, at the
end, its report and weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thrifty.artifacts.checkpoint import DecoderShape
from thrifty.artifacts.encoder_checkpoint import EncoderShape
from thrifty.engines.machine import available_memory_bytes
from thrifty.errors import TrainingError
from thrifty.files import write_atomically
from thrifty.train.settings import LoopSettings
from thrifty.types import OnProgress, Progress
from thrifty.units import format_bytes

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""Settings for glibc: keep freed memory for reuse. Returning large arrays to the system and
requesting them again at every operation takes longer than the arithmetic.
"""
SHARE_CORES = {"GOMP_SPINCOUNT": "10000"}
"""A setting for GNU OpenMP: threads that wait for one another spin for a moment, then sleep. Where
they only spin, a training beside replicas that answer comes to a standstill: a thread that holds
the others up waits for a core on which they spin. Where they always sleep, waking them takes longer
than the work between two waits. """
PARENT = "THRIFTY_TRAINING_PARENT"
"""The environment variable with the pid that processes end with, where it is not that of the
job."""
PACKAGES = ("torch", "transformers", "accelerate", "safetensors")


def require_training() -> None:
    """Raise `TrainingError` if the packages that training needs are not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"training needs {', '.join(missing)}, which is not installed: "
            "pip install 'thrifty[compress]'"
        )


def run_worker(
    module: str,
    job: dict[str, Any],
    folder: Path,
    processes: int,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
    ray: str | None = None,
) -> dict[str, Any]:
    """Train in separate processes of a module (`child.run_child`), until the job's limits; returns
    the report, or nothing if the training paused. With `ray`, the address of a cluster's head, on a
    node of it. Raises `TrainingError`.
    """
    write_atomically(folder / "job.json", json.dumps(job))
    (folder / "report.json").unlink(missing_ok=True)
    command = make_command(module, folder, processes)
    if ray is not None:
        job_of = ("-m", "thrifty.train.ray_job", ray, module, str(folder), str(processes))
        command = [sys.executable, *job_of]
    with (
        (folder / "worker.log").open("ab") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            env=make_environment(),
        ) as process,
    ):  # fmt: skip
        try:
            error = _follow(process, on_progress, on_note)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise TrainingError(error or _explain(process.returncode, folder))
    return read_report(folder) or {}


def make_command(module: str, folder: Path, processes: int) -> list[str]:
    """What runs the processes of a training on this machine."""
    command = [sys.executable, "-m", module, str(folder)]
    if processes > 1:
        command[1:1] = [
            "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes",
            str(processes), "--multi_gpu" if _has_gpus(processes) else "--cpu",
        ]  # fmt: skip
    return command


def make_environment() -> dict[str, str]:
    """The environment of these processes."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**KEEP_MEMORY, **SHARE_CORES, **os.environ, "PYTHONPATH": path}


def tell(**what: Any) -> bytes:
    """A line of their output."""
    return json.dumps(what).encode() + b"\n"


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report of a training that has ended; None if there is none."""
    report, weights = folder / "report.json", folder / "trained.safetensors"
    if not report.exists() or not weights.exists():
        return None
    found: dict[str, Any] = json.loads(report.read_text())
    return found


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


def require_memory(
    shape: DecoderShape | EncoderShape,
    parameters: int,
    training: LoopSettings,
    window: int,
    *,
    frozen_copies: int = 0,
    processes: int = 1,
) -> int:
    """How many micro-batches the free memory allows to be computed at once; raises `TrainingError`
    if it is too little for one.

    Counted are the weights, the gradients and the optimizer's two moments in float32, and the
    activations that layers keep for the backward pass: about 70 bytes for each token and channel,
    and 10 bytes for each head and pair of tokens. With LoRA, frozen weights are kept in 16 bits,
    too. `frozen_copies` of the model stay as they were. Each of `processes` has all of it.
    """
    kept = window * 70 * shape.hidden_size + 10 * shape.heads * window**2
    if training.checkpointing:
        kept += (shape.layers - 1) * window * 4 * shape.hidden_size
    else:
        kept *= shape.layers
    kept *= training.micro_batch
    weights = parameters * (6.5 if training.lora_rank else 20 if training.averages else 16)
    weights += 4 * frozen_copies * parameters
    needed = processes * round(weights + kept)
    free = available_memory_bytes()
    if needed > free:
        raise TrainingError(
            f"training {parameters:,} parameters needs about {format_bytes(needed)} of memory, and "
            f"{format_bytes(free)} are free; use LoRA (--lora-rank 16), --checkpointing, or a "
            "smaller model"
        )
    # Each has gradients of its own.
    another = kept + (0 if training.lora_rank else 4 * parameters)
    return 1 + int((free - needed) // another)
