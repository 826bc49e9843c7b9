"""The contents of files in one folder, written atomically.

The database holds each file's owner and name. A file without a row was left by a killed process;
`sweep` removes it once it is old.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from thrifty.files import replace_atomically, sync
from thrifty.home import make_private_folder
from thrifty.openai.ids import new_id

_FILE_ID = re.compile(r"file-[0-9a-f]{28}(-output|-errors)?")
_TEMPORARY = re.compile(r"\.file-[0-9a-f]{28}-[0-9]+-[0-9a-f]{8}|file-[0-9a-f]{28}\.new")
"""Temporary names of `replace_atomically`, and of the first release."""
ORPHAN_S = 86_400.0
"""A file without a row is removed after this long without a write."""
COPY_BYTES = 1 << 20


class Storage:
    """The files in one folder. Every method may block."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_private_folder(folder)

    def path(self, file_id: str) -> Path:
        """The path of a file's contents. Raises `ValueError` if the id is not one of ours."""
        if not _FILE_ID.fullmatch(file_id):
            raise ValueError(f"{file_id!r} is not a file id")
        return self.folder / file_id

    def store(self, source: IO[bytes], start: int, end: int) -> str:
        """Copy the bytes from `start` up to `end` of a file into a new one; returns its id. Raises
        `OSError`.
        """
        file_id = f"file-{new_id()}"
        path = self.path(file_id)
        with replace_atomically(path, mode=0o600) as temporary, temporary.open("wb") as target:
            _copy(source, start, end, target)
        sync(self.folder)
        return file_id

    def remove(self, file_id: str) -> None:
        """Remove a file's contents, if they exist."""
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self, find_known: Callable[[Iterable[str]], set[str]]) -> int:
        """Remove old files that `find_known` does not return; returns how many."""
        oldest_s = time.time() - ORPHAN_S
        old = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                ours = _FILE_ID.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name)
                if ours and entry.stat().st_mtime < oldest_s:
                    old.append(entry.name)
        removed = 0
        for index in range(0, len(old), 500):
            group = old[index : index + 500]
            known = find_known(group)
            for name in group:
                if name not in known:
                    (self.folder / name).unlink(missing_ok=True)
                    removed += 1
        return removed


def _copy(source: IO[bytes], start: int, end: int, target: IO[bytes]) -> None:
    source.seek(start)
    left = end - start
    while left > 0:
        data = source.read(min(COPY_BYTES, left))
        if not data:
            raise OSError("the upload ended early")
        target.write(data)
        left -= len(data)
