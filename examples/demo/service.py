"""A service in a home of its own, and the commands of `thrifty` that act on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests

START_S = 600.0
EXAMPLES = Path(__file__).parents[1]


class Failed(Exception):
    """A command did not do what the demo needs."""


class Service:
    """`thrifty up` as a child process; `stop` ends it."""

    def __init__(self, home: Path, spec: Path, on_progress: Callable[[str], None]) -> None:
        """`on_progress` gets the lines that commands tell where there is no terminal."""
        self.home = home
        self._on_progress = on_progress
        self.url = ""
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        # The controller imports the judge from here.
        paths = [str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            **os.environ, "THRIFTY_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths),
        }  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it serves."""
        log = (self.home / "up.log").open("ab")
        command = [sys.executable, "-m", "thrifty", "up", str(self._spec), "--no-measure"]
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            if self._process.poll() is not None:
                raise Failed(f"the service does not start:\n{self._read_log()}")
            note = self.home / "run" / "controller.json"
            if note.exists() and self._is_ready(str(json.loads(note.read_text())["url"])):
                return
            time.sleep(0.2)
        raise Failed(f"the service was not ready within {START_S:g} s:\n{self._read_log()}")

    def _is_ready(self, url: str) -> bool:
        try:
            answer = requests.get(f"{url}/readyz", timeout=5)
        except requests.RequestException:
            return False
        self.url = url
        return answer.status_code == 200

    def _read_log(self) -> str:
        return (self.home / "up.log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """Drain and end it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def wait(self) -> None:
        """Return once it has ended by itself."""
        assert self._process is not None
        self._process.wait()

    def run(self, *words: str, expected: Sequence[int] = (0,)) -> str:
        """What a command prints. Raises `Failed`."""
        # On a terminal, its progress is shown there.
        stderr = None if sys.stderr.isatty() else subprocess.PIPE
        told: deque[str] = deque(maxlen=20)
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "thrifty", *words], env=self._environment, text=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=stderr,
            )  # fmt: skip
            try:
                for line in process.stderr or ():
                    told.append(line)
                    self._on_progress(line.strip())
                code = process.wait()
            finally:
                # Interrupted here: it ends what it has started.
                process.terminate()
                process.wait()
            if code not in expected:
                raise Failed(f"thrifty {' '.join(words)} ended with {code}:\n{''.join(told)}")
            out.seek(0)
            return out.read()

    def get(self, path: str) -> Any:
        """What the management API answers; cheaper than a command where it is asked often."""
        reply = requests.get(f"{self.url}{path}", timeout=60)
        reply.raise_for_status()
        return reply.json()

    def ask(self, *words: str, expected: Sequence[int] = (0,)) -> Any:
        """What a command prints with `--json`."""
        return json.loads(self.run(*words, "--json", expected=expected))
