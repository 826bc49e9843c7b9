"""The actor that owns one engine process. It runs on a node of the Ray cluster.

Requests never come here: gateways speak HTTP with the engine. The actor starts it, says how it ended,
and stops it. The engine ends with the actor, however that ends. Once the cluster no longer knows the
actor (its node was given up, or another took its place), it ends its engine by itself; while the
head does not answer, it serves on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from thrifty.engines.server import KEY_VARIABLE, MODEL_VARIABLE, SERVED_VARIABLE
from thrifty.errors import ThriftyError
from thrifty.fleet.owned_child import make_owned
from thrifty.fleet.process import ManagedProcess, start_process
from thrifty.fleet.ray_cores import take_cores
from thrifty.fleet.ray_settings import make_fingerprint
from thrifty.home import find_home, make_private_folder
from thrifty.http.certificates import VARIABLE, find_folder
from thrifty.http.origin import FLEET_SCHEME
from thrifty.http.tls import load_replica_side
from thrifty.version import __version__

ROLE = "ray-replica"
FENCE_CHECK_S = 1.0
NAMES_PER_SECOND = 100
"""With many actors in a cluster each asks less often, so that their questions stay few."""
_MISSED = 2
"""How often in a row the cluster must not know an actor."""
_GONE = 3


class EngineOwner:
    """See the module's docstring. Its methods run on one event loop."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """`arguments`: `name`, `replica`, `key` (of the set), `served`, `cpus`, `version`,
        `fingerprint` (None without a key), `model` (a reference, or None) and `tls`, whether the
        replica has a certificate.
        """
        self._arguments = arguments
        self._process: ManagedProcess | None = None
        self._url = ""
        self._cores: list[int] = []
        self._ended: dict[str, Any] | None = None
        self._has_ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> dict[str, Any]:
        """Start the engine, once. Returns what `describe` does."""
        if self._process is None and self._ended is None:
            fault = self._find_fault()
            if fault is None:
                self._start()
            else:
                self._note_end(fault, failed=True)
        return await self.describe()

    async def describe(self) -> dict[str, Any]:
        """What it serves, where, and how it ended."""
        import ray

        context = ray.get_runtime_context()
        return {
            **{one: self._arguments[one] for one in ("name", "replica", "key", "served")},
            "url": self._url,
            "pid": self._process.pid if self._process is not None else None,
            "node": ray.util.get_node_ip_address(),
            "node_id": context.get_node_id(),
            "cores": self._cores,
        }

    async def ping(self) -> bool:
        """That it answers. Whether its engine runs, `wait` tells."""
        return True

    async def wait(self) -> dict[str, Any]:
        """How the engine ended, once it has: `message`, and `failed` where starting it anew may not
        help.
        """
        await self._has_ended.wait()
        assert self._ended is not None
        return self._ended

    async def end(self, grace_s: float) -> None:
        """Stop the engine; what it works on ends within `grace_s`."""
        if self._process is not None:
            await self._process.stop(grace_s)

    def _find_fault(self) -> str | None:
        """Why this node cannot serve it."""
        wanted, node = self._arguments["version"], socket.gethostname()
        if wanted != __version__:
            return (
                f"the node {node} has Thrifty {__version__} and the controller {wanted}; install "
                "the same there"
            )
        key = os.environ.get(KEY_VARIABLE)
        if not key:
            return (
                f"the node {node} has no {KEY_VARIABLE}; start Ray there with the controller's in its "
                "environment"
            )
        if make_fingerprint(key, self._arguments["name"]) != self._arguments["fingerprint"]:
            return (
                f"the node {node} has another {KEY_VARIABLE} than the controller; start Ray there "
                "with the controller's in its environment"
            )
        return self._find_certificate_fault(node)

    def _find_certificate_fault(self, node: str) -> str | None:
        """Why this node cannot show a certificate, or would show one that nobody asks for."""
        wanted, folder = bool(self._arguments.get("tls")), find_folder()
        if not wanted and folder is not None:
            return (
                f"the node {node} has certificates ({VARIABLE}), and the spec does not say 'fleet.tls: "
                "true'; write that, or start Ray there without them"
            )
        if not wanted:
            return None
        if folder is None:
            return (
                f"the node {node} has no {VARIABLE}; start Ray there with the folder of its certificates "
                "in its environment (docs/certificates.md)"
            )
        try:
            load_replica_side()
        except ThriftyError as error:
            return f"the node {node}: {error}"
        return None

    def _start(self) -> None:
        import ray

        home = find_home()
        make_private_folder(home.root)
        address = ray.util.get_node_ip_address()
        host = f"[{address}]" if ":" in address else address
        port = _find_port(address)
        self._cores = take_cores(
            home.run / f"cores-{socket.gethostname()}", int(self._arguments["cpus"])
        )
        environment = {SERVED_VARIABLE: self._arguments["served"]}
        if self._arguments["model"]:
            environment[MODEL_VARIABLE] = self._arguments["model"]
        command = [
            sys.executable, "-m", "thrifty", "replica", "--served",
            "--host", address, "--port", str(port),
        ]  # fmt: skip
        name = self._arguments["replica"]
        # Ray would have every library use as many threads as the actor has cores.
        os.environ.pop("OMP_NUM_THREADS", None)
        try:
            self._process = start_process(
                make_owned(command), role=ROLE, process_id=self._arguments["name"], home=home.root,
                log_path=home.log_of(name), environment=environment, cores=self._cores or None,
            )  # fmt: skip
        except ThriftyError as error:
            self._note_end(str(error), failed=True)
            return
        scheme = FLEET_SCHEME if self._arguments.get("tls") else "http"
        self._url = f"{scheme}://{host}:{port}"
        self._tasks = [
            asyncio.ensure_future(self._await_end(self._process)),
            asyncio.ensure_future(self._keep_fence(self._process)),
        ]

    async def _await_end(self, process: ManagedProcess) -> None:
        await process.wait()
        status = process.exit_status or 0
        tail = process.read_log_end()
        if status < 0:
            self._note_end(f"the process was killed by signal {-status}", failed=False)
        else:
            text = f"the process ended with status {status}" + (f": {tail}" if tail else "")
            self._note_end(text, failed=status > 0)

    def _note_end(self, message: str, *, failed: bool) -> None:
        self._ended = {"message": message, "failed": failed}
        self._has_ended.set()

    async def _keep_fence(self, process: ManagedProcess) -> None:
        """End the engine once the cluster does not know this actor any more."""
        import ray

        missed, pause_s = 0, FENCE_CHECK_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                names = await asyncio.to_thread(ray.util.list_named_actors)
            except Exception:  # noqa: S112
                continue  # whatever Ray raises, the head did not answer
            pause_s = max(FENCE_CHECK_S, len(names) / NAMES_PER_SECOND)
            missed = 0 if self._arguments["name"] in names else missed + 1
            if missed >= _MISSED:
                process.kill()
                os._exit(_GONE)


class LeaseHolder:
    """The actor of the one controller that acts. It ends with the controller's connection."""

    def __init__(self, holder: str) -> None:
        self._holder = holder

    async def who(self) -> str:
        """Who acts."""
        return self._holder


def _find_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


__all__ = ["EngineOwner", "LeaseHolder"]
