"""The port that the gateway's workers share: chosen, taken, and who has it where it is taken."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection

import psutil

from thrifty.errors import FleetError
from thrifty.http.server import BACKLOG


def find_free_port(wanted: int = 0) -> int:
    """A loopback port that is free now: `wanted`, if it is."""
    if wanted:
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe,
        ):
            # A server that has just ended leaves connections that do not hold its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", wanted))
            return wanted
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def choose_port(host: str, port: int, own: Collection[int]) -> int:
    """The port to listen on; 0 finds a free one. `own` are the pids of workers that will be replaced:
    what they listen on is not taken. Raises `FleetError` where somebody else has it.
    """
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holder = _find_listener(port)
            if holder is not None and holder in own:
                return port
            who = f" by {_describe_process(holder)}" if holder is not None else ""
            raise FleetError(
                f"cannot listen on {host}:{port}: {error.strerror}"
                f"{who and f' (taken{who})'}; choose another port (--port)"
            ) from None
        return int(probe.getsockname()[1])


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """So many listening sockets, all on one port."""
    sockets = []
    for _ in range(count):
        sockets.append(bind_listener(host, port))
        port = sockets[0].getsockname()[1]
    for listening in sockets:
        listening.listen(BACKLOG)
    return sockets


def bind_listener(host: str, port: int) -> socket.socket:
    """A socket that shares a port with others, and gets no connections until somebody listens."""
    bound = socket.socket(_family(host), socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    bound.setblocking(False)
    return bound


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _find_listener(port: int) -> int | None:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                return int(connection.pid) if connection.pid else None
    return None


def _describe_process(pid: int) -> str:
    try:
        return f"pid {pid}, {psutil.Process(pid).name()}"
    except psutil.Error:
        return f"pid {pid}"
