"""The socket from a replica's process to its server, read without blocking."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from thrifty.engines.openvino.messages import FromScorer, ToServer, Unpacker, encode

READ_BYTES = 1 << 20

Message = TypeVar("Message")


class Channel(Generic[Message]):
    """Messages from and to the server. `closed` once the server is gone."""

    def __init__(self, connection: socket.socket, decode: Callable[[bytes], Message]) -> None:
        self._socket = connection
        self._decode = decode
        self._unpacker = Unpacker()
        self.closed = False

    def receive(self, *, wait: bool) -> list[Message]:
        """The messages that have come; `wait` for at least some bytes if there are none."""
        messages: list[Message] = []
        timeout = None if wait else 0.0
        while not self.closed:
            readable, _, _ = select.select([self._socket], [], [], timeout)
            if not readable:
                break
            data = self._socket.recv(READ_BYTES)
            if not data:
                self.closed = True
                break
            messages += [self._decode(message) for message in self._unpacker.feed(data)]
            timeout = 0.0
        return messages

    def send(self, message: ToServer | FromScorer) -> None:
        """Send one message; a server that is gone ends the process."""
        try:
            self._socket.sendall(encode(message))
        except OSError:
            self.closed = True
