"""A folder as a remote: one that several machines mount (NFS, a cluster's volume), or any path.

Files are written beside their place and renamed. A manifest is put in its place by a hard link,
which fails where one is there, on network file systems too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from thrifty.artifacts.remotes.base import CHUNK_BYTES, OnBytes
from thrifty.errors import RemoteError
from thrifty.files import sync, temporary_path

PIECE_BYTES = 1024 * 1024
STALE_S = 86400.0
"""An unfinished file of this age was left by a killed process."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class FolderObjects:
    """Files below one folder, as `Objects`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find_size(self, key: str) -> int | None:
        """As `Objects.find_size`."""
        with _own_errors(self._root, "read"):
            try:
                return (self._root / key).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read(self, key: str, offset: int) -> Iterator[bytes]:
        """As `Objects.read`."""
        with _own_errors(self._root, "read"), (self._root / key).open("rb") as file:
            file.seek(offset)
            while piece := file.read(PIECE_BYTES):
                yield piece

    def put_file(self, key: str, path: Path, on_sent: OnBytes) -> None:
        """As `Objects.put_file`."""
        target = self._root / key
        with _own_errors(self._root, "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(target.parent)
            temporary = temporary_path(target)
            try:
                with path.open("rb") as source, temporary.open("xb") as file:
                    while piece := source.read(CHUNK_BYTES):
                        file.write(piece)
                        on_sent(len(piece))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync(target.parent)

    def create(self, key: str, content: bytes) -> bool:
        """As `Objects.create`."""
        target = self._root / key
        with _own_errors(self._root, "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(target)
            try:
                temporary.write_bytes(content)
                sync(temporary)
                return _put_in_place(temporary, target, content)
            finally:
                temporary.unlink(missing_ok=True)

    def list_keys(self, prefix: str) -> list[str]:
        """As `Objects.list_keys`."""
        with _own_errors(self._root, "read"):
            found = (self._root / prefix).rglob("*.json")
            return sorted(
                path.relative_to(self._root).as_posix()
                for path in found
                if not path.name.startswith(".")
            )


def _put_in_place(temporary: Path, target: Path, content: bytes) -> bool:
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: created if absent too, but not in one step.
        try:
            with target.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
    sync(target.parent)
    return True


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()


@contextlib.contextmanager
def _own_errors(root: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RemoteError(
                f"the remote {root} is full: {error.strerror}; free some space there and try again. "
                "What was sent whole stays and is not sent again"
            ) from None
        raise RemoteError(
            f"the remote {root} cannot be {done}: {error.strerror or error}"
        ) from None
