"""A line between the controller and a gateway worker: "look at the database now".

Both ends look several times a second anyway, so a notice that is lost costs a moment and nothing
else. A worker sends one when a request waits for a deployment at zero, the controller when it has
written what gateways route by. Notices say nothing: the database is what both go by.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

_NOTICE = b"!"
_READ_BYTES = 4096


class NoticeLine:
    """One end of the line. Used on one event loop."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes over one of two connected sockets."""
        connected.setblocking(False)
        self._socket = connected
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def closed(self) -> bool:
        """Whether this end was closed, or the other end was found gone."""
        return self._socket.fileno() < 0

    def send(self) -> None:
        """Send a notice; without effect if the other end is gone, or has many unread."""
        with contextlib.suppress(OSError):
            self._socket.send(_NOTICE)

    def listen(self, on_notice: Callable[[], None]) -> None:
        """Call `on_notice` for notices from now on, once for all that arrive together."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._receive, on_notice)

    def close(self) -> None:
        """Close this end."""
        if self._loop is not None and not self.closed:
            self._loop.remove_reader(self._socket)
        self._socket.close()

    def _receive(self, on_notice: Callable[[], None]) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            on_notice()
        else:
            self.close()
