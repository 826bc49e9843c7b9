"""Sockets that are files, by which processes of one home reach each other. Folders of a home are
private, and so are they.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from thrifty.errors import FleetError

_MOST_BYTES = 100
"""What the name of a socket may have on every system."""


def listen_at(path: Path) -> socket.socket:
    """A socket that listens at `path`, in place of one that was left there. Raises `FleetError`."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with _shorten(path) as name:
            listening.bind(name)
        path.chmod(0o600)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise FleetError(
            f"cannot listen at {path}: {error.strerror or error}; set THRIFTY_HOME to a folder with a "
            "shorter path, on a disk of this machine"
        ) from None
    listening.setblocking(False)
    return listening


def connect_to(path: Path) -> socket.socket:
    """A socket that is connected to what listens at `path`. Raises `OSError`."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.setblocking(False)
    try:
        with _shorten(path) as name:
            connected.connect(name)
    except OSError:
        connected.close()
        raise
    return connected


@contextlib.contextmanager
def _shorten(path: Path) -> Iterator[str]:
    """A name for `path` that is short enough for a socket, valid within the block. Linux reaches
    any path through an open folder.
    """
    if len(os.fsencode(path)) <= _MOST_BYTES or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
