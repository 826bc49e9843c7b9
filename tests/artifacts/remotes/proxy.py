"""A proxy for one server that slows bytes down, breaks connections off, and goes away."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

PIECE_BYTES = 64 * 1024


@dataclass
class Faults:
    """What the proxy does; may be changed while it runs."""

    break_after: list[int] = field(default_factory=list)
    """Bytes after which connections break, counted over all, one after the other."""
    upwards: bool = True
    """Which direction is counted: to the server, or from it."""
    away: bool = False
    """Whether it closes every connection at once."""
    bytes_per_s: float = 0.0
    """How fast bytes go; 0: as they come."""
    passed: int = 0
    broken: int = 0


class Proxy:
    """Passes connections on to the port `target` of this machine."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.target = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept nothing any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.faults.away:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                for source, target, up in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self._pass, args=(source, target, up), daemon=True
                    ).start()

    def _pass(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if self.faults.bytes_per_s:
                    time.sleep(len(data) / self.faults.bytes_per_s)
                if self.faults.away or (up == self.faults.upwards and self._breaks(len(data))):
                    break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _breaks(self, count: int) -> bool:
        with self._lock:
            self.faults.passed += count
            if self.faults.break_after and self.faults.passed >= self.faults.break_after[0]:
                self.faults.break_after.pop(0)
                self.faults.broken += 1
                return True
            return False


@contextlib.contextmanager
def running_proxy() -> Iterator[Proxy]:
    """A proxy, closed at the end."""
    proxy = Proxy()
    try:
        yield proxy
    finally:
        proxy.close()
