"""A Ray cluster on this machine: a head and nodes, each with an address of its own on loopback.

Nothing of Ray's own test helpers is used: they end every Ray of the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from thrifty.engines.server import KEY_VARIABLE
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import ProcessId, find_ours

KEY = "k" * 40
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
"""Whoever lacks it cannot speak with the cluster, as docs/deploy/ray.md has it."""
START_S = 90.0
HEALTH = {
    "RAY_health_check_initial_delay_ms": "5000", "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
"""A node that refuses connections is given up within two seconds, one that is busy is not."""


@dataclass
class Node:
    """One node, with all processes that it started."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def tree(self) -> list[psutil.Process]:
        """Its processes: Ray's own, actors and engines."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def lose(self) -> None:
        """Kill everything on it at once."""
        found = self.tree()
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.suspend()  # so that nothing ends the rest in order
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.kill()
        self.process.wait()

    def find(self, name: str) -> psutil.Process:
        """One of Ray's own processes, such as `raylet`."""
        (found,) = [one for one in self.tree() if one.name() == name]
        return found


@dataclass
class Cluster:
    """See the module's docstring."""

    home: Path
    """THRIFTY_HOME of all nodes."""
    port: int = field(default_factory=find_free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray")))
    nodes: dict[str, Node] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    started: int = 0

    @property
    def address(self) -> str:
        """Of the head."""
        return f"127.0.0.2:{self.port}"

    def start(self, nodes: int, cpus: int = 4) -> None:
        """A head that runs no replicas, and so many nodes."""
        self.start_head()
        for _ in range(nodes):
            self.add(cpus)

    def start_head(self) -> Node:
        """The head alone."""
        more = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false"]
        node = self._start("127.0.0.2", [*more, f"--temp-dir={self.folder}"])
        self._wait(node)
        return node

    def add(self, cpus: int = 4, **environment: str) -> Node:
        """One more node. Two that start at a time would take each other's sockets."""
        self.started += 1
        address = f"127.0.0.{2 + self.started}"
        options = [f"--address={self.address}", f"--num-cpus={cpus}"]
        node = self._start(address, options, environment)
        self._wait(node)
        return node

    def _start(
        self, address: str, options: list[str], environment: Mapping[str, str] | None = None
    ) -> Node:
        log = self.folder / f"{address}.log"
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", *options,
            f"--node-ip-address={address}", "--object-store-memory=80000000",
            "--disable-usage-stats",
        ]  # fmt: skip
        full = {
            **os.environ, **HEALTH, **TOKEN, "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
            KEY_VARIABLE: KEY, "THRIFTY_HOME": str(self.home), **self.environment,
            **(environment or {}),
        }  # fmt: skip
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=full, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self.nodes[address] = Node(address, process, log)
        return self.nodes[address]

    def _wait(self, node: Node) -> None:
        """Until it has said that it runs."""
        deadline_s = time.monotonic() + START_S
        while "Ray runtime started" not in node.log.read_text():
            assert node.process.poll() is None, node.log.read_text()
            assert time.monotonic() < deadline_s, f"it does not start: {node.log.read_text()}"
            time.sleep(0.1)

    def engines(self) -> dict[str, ProcessId]:
        """The engines that run, by the name of their actors."""
        return {name: ident for ident, role, name in find_ours(self.home) if role == "ray-replica"}

    def stop(self) -> None:
        """End every process of it, and of nobody else."""
        for node in self.nodes.values():
            node.lose() if node.process.poll() is None else None
        for ident in self.engines().values():
            with contextlib.suppress(OSError):
                os.kill(ident.pid, signal.SIGKILL)
