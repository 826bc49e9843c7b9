"""File operations of the store: locks, checksums, links and removal."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from thrifty.files import temporary_path
from thrifty.home import make_private_folder


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock of the file at `path` during the block; waits for it."""
    make_private_folder(path.parent)
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The previous holder may have removed the file; the others then lock a new one.
            if is_at(file.fileno(), path):
                yield
                return


@contextlib.contextmanager
def try_lock_file(path: Path) -> Iterator[bool]:
    """Hold the lock during the block if it is free; yields whether it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = is_at(descriptor, path)
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def try_hash(path: Path) -> str | None:
    """The SHA-256 of a file; None if the disk fails to read it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except OSError:
        return None


def link_file(source: Path, target: Path) -> None:
    """Replace `target` atomically by a hard link to `source`."""
    temporary = temporary_path(target)
    os.link(source, temporary)
    os.replace(temporary, target)


def remove_tree(folder: Path) -> None:
    """Remove a folder and its content, even if read-only; what cannot be removed stays."""
    if not folder.is_dir():
        return
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
