"""The file of a name: its versions, and the highest number that any version of it has had.

A number is never given out twice, so that a label in a log or a spec always means the same model.
The file is a list of versions. Where the highest number is none of theirs, because that version was
removed, it is an object with that number beside the list.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from thrifty.artifacts.artifact import NamedVersion
from thrifty.errors import IntegrityError
from thrifty.files import write_atomically

FULL = (errno.ENOSPC, errno.EDQUOT)


class Versions(msgspec.Struct, frozen=True):
    """The versions of a name, the oldest first, and the highest number so far."""

    highest: int
    versions: list[NamedVersion]


def read_name(path: Path) -> Versions:
    """What the file of a name says. Raises `IntegrityError`."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[NamedVersion] | Versions)
    except FileNotFoundError:
        return Versions(0, [])
    except (OSError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"{path} is damaged: {error}") from None
    if isinstance(found, Versions):
        return found
    return Versions(max((one.version for one in found), default=0), found)


def write_name(path: Path, name: Versions) -> None:
    """Replace the file of a name. Raises `OSError`.

    A removal must be possible on a full disk: what is not longer than the file is then written
    into it.
    """
    listed = any(one.version == name.highest for one in name.versions)
    content = msgspec.json.encode(name.versions if listed else name)
    try:
        write_atomically(path, msgspec.json.format(content))
    except OSError as error:
        if error.errno not in FULL or not path.exists() or len(content) > path.stat().st_size:
            raise
        _overwrite(path, content)


def _overwrite(path: Path, content: bytes) -> None:
    """Write into the file itself, in one call, padded with spaces: a kill leaves no half of it."""
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), content.ljust(path.stat().st_size), 0)
        os.fsync(file.fileno())
