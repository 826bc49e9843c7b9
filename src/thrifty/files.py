"""Atomic file replacement: readers see the old content or the new content, never a part of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Write `content` (text as UTF-8) to `path` so that a crash leaves the old file or the new one.

    `mode` is the file's permissions before the umask. Raises `OSError`; `path` is then unchanged.
    """
    with replace_atomically(path, mode=mode) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replace_atomically(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield the path of an empty temporary file, which replaces `path` when the block ends.

    The temporary file is in the same folder. It is removed if the block raises. Raises `OSError`.
    """
    temporary = temporary_path(path)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path` that no other thread or process uses.

    It does not end as `path` does, so that patterns such as `*.json` do not match it.
    """
    return path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def sync(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
