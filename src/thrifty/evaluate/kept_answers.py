"""A cache of answers by request, so that an interrupted run computes only the rest.

It is a file of JSON lines, appended as answers come; a line that a killed run left incomplete is
truncated.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from thrifty.artifacts.disk import lock_file

FORMAT_VERSION = 1
"""Increase it when the same request comes to mean something else."""
SYNC_EVERY = 64


class KeptAnswers:
    """The answers of one model. While it is open, it is locked against other writers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        self._since_sync = 0

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(self._path.with_suffix(".lock"))
        self._lock.__enter__()
        lines = self._path.read_bytes().split(b"\n")[:-1] if self._path.exists() else []
        for line in lines:
            key, answer = json.loads(line)
            self._known[key] = answer
        self._file = self._path.open("ab")
        self._file.truncate(sum(len(line) + 1 for line in lines))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self._lock.__exit__(kind, error, trace)

    def find(self, *asked: Any) -> Any:
        """The answer to a request, which must be JSON; None if it is unknown."""
        return self._known.get(_key(asked))

    def add(self, answer: Any, *asked: Any) -> None:
        """Record an answer to a request."""
        key = _key(asked)
        self._known[key] = answer
        self._file.write(json.dumps([key, answer]).encode() + b"\n")
        self._file.flush()
        self._since_sync += 1
        if self._since_sync >= SYNC_EVERY:
            os.fsync(self._file.fileno())
            self._since_sync = 0


def _key(asked: tuple[Any, ...]) -> str:
    text = json.dumps([FORMAT_VERSION, *asked], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
