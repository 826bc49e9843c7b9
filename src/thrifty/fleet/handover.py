"""The listening sockets of gateway workers whose controller was killed, handed to the next one.

A controller passes its sockets to its workers (`control.gateways`), so that they outlive each
worker. When it is killed, only the workers hold them, and what waits in a socket is reset once the
last process closes it. So each worker offers its sockets at a file in the home, and the next
controller takes them before it ends that worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

from thrifty.unix_sockets import connect_to, listen_at

_MOST = 64
_TIMEOUT_S = 2.0
"""A worker that is stuck keeps its sockets."""


class ListenerOffer:
    """A worker's side: gives copies of its listening sockets to whoever connects. Used on one event
    loop.
    """

    def __init__(self, path: Path, descriptors: Sequence[int]) -> None:
        """Listen at `path`. Raises `FleetError`."""
        self._descriptors = list(descriptors)
        self._socket = listen_at(path)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._give)

    def close(self) -> None:
        """Stop listening. The file stays: another worker may have taken its place."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _give(self) -> None:
        with contextlib.suppress(OSError):
            connected, _ = self._socket.accept()
            with connected:
                socket.send_fds(connected, [b"!"], self._descriptors)


def take_listeners(path: Path) -> list[socket.socket]:
    """Copies of the listening sockets of the worker that offers them at `path`; none if no worker
    does. Blocks for a moment.
    """
    taken: list[socket.socket] = []
    with contextlib.suppress(OSError), connect_to(path) as connected:
        connected.settimeout(_TIMEOUT_S)
        _, descriptors, _, _ = socket.recv_fds(connected, 1, _MOST)
        taken += [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for one in taken:
        one.setblocking(False)
    return taken
