"""A function as Lambda runs it: its runtime as a process of its own, against the emulator."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.aws_lambda.emulator import Emulator
from thrifty.aws_lambda.baked import write_baked
from thrifty.engines.base import Served

KEY = "a-key-of-more-than-32-characters-0123"


def bake_echo(root: Path, **options: Any) -> Path:
    """A home whose function serves the echo engine."""
    defaults = {
        "ttft": 0.0, "tpot": 0.0, "prefill": 0.0, "slots": 8, "context": 4096, "cache": 0,
        "reply": None, "load": 0.0,
    }  # fmt: skip
    served = Served("pretend", "echo", "echo", "1", "decoder", options={**defaults, **options})
    root.mkdir(parents=True, exist_ok=True)
    write_baked(root, served)
    return root


class Function:
    """The runtime's process and the API it talks to."""

    def __init__(self, emulator: Emulator, process: subprocess.Popen[bytes], log: Path) -> None:
        self.emulator = emulator
        self.process = process
        self.log = log

    def engine(self) -> psutil.Process:
        """The engine's server."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def terminate(self, timeout_s: float = 30.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_function(
    root: Path, environment: Mapping[str, str], wrapper: Sequence[str] = (), **more: Any
) -> Iterator[Function]:
    """Start the function, by `wrapper` if there is one; nothing of it is left afterwards."""
    log = root.parent / f"{root.name}.log"
    with Emulator().running() as emulator, log.open("wb") as file:
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "thrifty.aws_lambda"], stdout=file, stderr=subprocess.STDOUT,
            env={
                "PATH": os.environ["PATH"], "HOME": "/tmp", "THRIFTY_HOME": str(root),
                "AWS_LAMBDA_RUNTIME_API": emulator.address, **environment,
            },
            **more,
        )  # fmt: skip
        try:
            yield Function(emulator, process, log)
        finally:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()
