"""The process that speaks with Ray, for a controller that must not wait for it.

Ray's driver blocks, prints, and ends its whole process when the head stays away, so it has one of its
own. It reads commands from standard input and writes events to standard output, a line of JSON each;
`ray_link` is the other end. It ends with the controller, and with it the lease by which one controller
acts: a named actor that lives as long as this connection.

Commands: `start`, `end`, `kill`, `check`, `request`. Events: `connected`, `lease`, `listed`, `placed`,
`ended`, `waiting`, `checked`, `away`, `back`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from thrifty.fleet.ray_actor import EngineOwner, LeaseHolder
from thrifty.fleet.ray_settings import clamp_bundles, explain_waiting, make_options
from thrifty.ray_connection import CONNECT_S, check_port, explain_connection, shorten_error

LEASE_NAME = "controller"
LEASE_RETRY_S = 0.5
POLL_S = 1.0
AWAY_AFTER_S = 3.0
"""An answer of the head that takes longer is told."""
PING_S = 1.0
"""A worker that died is known to be dead by then, where its node lives."""
PING_PAUSE_S = 0.1
END_EXTRA_S = 10.0
SETTING = "fleet.address"
SLOW_CONNECT_S = 15.0
"""Ray's own attempts take longer; what may be wrong is told by then."""
GOODBYE_S = 1.0
MAX_LINE = 1 << 24
NODE_LABEL = "ray.io/node-id"
_SENDER = Callable[[str, Mapping[str, Any]], None]


class Bridge:
    """See the module's docstring. `run` it on an event loop, with Ray connected."""

    def __init__(self, holder: str, emit: _SENDER) -> None:
        """`holder` names this controller to others."""
        self._holder = holder
        self._emit = emit
        self._handles: dict[str, Any] = {}
        self._waiting: dict[str, Mapping[str, float]] = {}
        """What actors without a place ask for."""
        self._told: dict[str, str | None] = {}
        self._creating: dict[str, asyncio.Event] = {}
        self._lease: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Take the lease, tell what there is, and carry out commands until there are no more."""
        self._begin(self._watch_cluster())
        await self._take_lease()
        await self._list()
        self._begin(self._keep_lease())
        while line := await reader.readline():
            command = json.loads(line)
            self._begin(getattr(self, f"_do_{command.pop('do')}")(**command))
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.to_thread(_kill, self._lease)

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Who acts

    async def _take_lease(self) -> None:
        told = None
        while True:
            self._lease = await asyncio.to_thread(_make_lease, self._holder)
            if self._lease is not None:
                with contextlib.suppress(Exception):
                    await self._lease.who.remote()
                    self._emit("lease", {"other": None})
                    return
            other = await _ask_holder()
            if other is not None and other != told:
                told = other
                self._emit("lease", {"other": other})
            await asyncio.sleep(LEASE_RETRY_S)

    async def _keep_lease(self) -> None:
        """The actor may die with its node; then the lease is taken again."""
        while True:
            await asyncio.sleep(LEASE_RETRY_S)
            try:
                await self._lease.who.remote()
            except Exception as error:
                if not _is_death(error):
                    continue
                await self._take_lease()

    # What there is

    async def _list(self) -> None:
        """Tell which actors an earlier controller left, and follow them. One that does not answer
        soon may have no place yet, or be busy: `placed` tells of it later.
        """
        import ray

        names = await asyncio.to_thread(ray.util.list_named_actors)
        found = await asyncio.gather(*(self._describe(one) for one in names if one != LEASE_NAME))
        described = [one for one in found if one is not None and one["url"]]
        answered = {one["name"] for one in described}
        silent = [name for name in self._handles if name not in answered]
        self._emit("listed", {"actors": described, "silent": silent})
        for name in self._handles:
            self._begin(self._follow(name, placed=name in answered))

    async def _describe(self, name: str) -> dict[str, Any] | None:
        """What an actor says of itself; None where it does not answer soon, or is gone."""
        import ray

        with contextlib.suppress(Exception):
            self._handles[name] = await asyncio.to_thread(ray.get_actor, name)
            async with asyncio.timeout(CONNECT_S):
                return dict(await self._handles[name].describe.remote())
        return None

    async def _watch_cluster(self) -> None:
        """Tell whether the head answers, and why actors have no place."""
        away = False
        while True:
            asking = asyncio.ensure_future(asyncio.to_thread(_read_nodes))
            await asyncio.wait({asking}, timeout=AWAY_AFTER_S)
            if not asking.done() and not away:
                away = True
                self._emit("away", {})
                await asyncio.wait({asking})
            try:
                totals, free = await asking
            except Exception as error:
                if not away:
                    away = True
                    self._emit("away", {"message": shorten_error(error)})
            else:
                if away:
                    away = False
                    self._emit("back", {})
                self._tell_waiting(totals, free)
            await asyncio.sleep(POLL_S)

    def _tell_waiting(self, totals: list[Any], free: list[Any]) -> None:
        for name, bundle in self._waiting.items():
            text = explain_waiting(bundle, totals, free)
            if text != self._told.get(name):
                self._told[name] = text
                self._emit("waiting", {"name": name, "message": text})

    # Commands

    async def _do_start(
        self, name: str, bundle: dict[str, float], arguments: dict[str, Any], avoid: list[str]
    ) -> None:
        self._waiting[name] = bundle
        created = self._creating[name] = asyncio.Event()
        try:
            self._handles[name] = await asyncio.to_thread(_create, name, bundle, arguments, avoid)
        except Exception as error:
            self._finish(name, f"Ray did not take it: {shorten_error(error)}", failed=True)
            return
        finally:
            del self._creating[name]
            created.set()
        await self._follow(name, placed=False)

    async def _follow(self, name: str, *, placed: bool) -> None:
        """Stay with an actor until its engine, or it, has ended."""
        from ray.exceptions import ActorUnavailableError, RayActorError, RayError

        handle = self._handles[name]
        while True:
            try:
                if not placed:
                    self._emit("placed", await handle.begin.remote())
                    placed = True
                    self._waiting.pop(name, None)
                ended = await handle.wait.remote()
                self._finish(name, ended["message"], failed=ended["failed"])
                return
            except ActorUnavailableError:
                await asyncio.sleep(POLL_S / 2)
            except RayActorError as error:
                self._finish(name, explain_death(error), failed=False)
                return
            except RayError as error:
                self._finish(name, explain_death(error), failed=True)
                return

    def _finish(self, name: str, message: str, *, failed: bool) -> None:
        handle = self._handles.pop(name, None)
        self._waiting.pop(name, None)
        self._told.pop(name, None)
        self._emit("ended", {"name": name, "message": message, "failed": failed})
        if handle is not None:
            self._begin(asyncio.to_thread(_kill, handle))

    async def _do_end(self, name: str, grace_s: float) -> None:
        handle = await self._find(name)
        if handle is not None and name not in self._waiting:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(grace_s + END_EXTRA_S):
                    await handle.end.remote(grace_s)
        await self._do_kill(name)

    async def _find(self, name: str) -> Any:
        """An actor's handle, also of one that is just being created; None where it is gone."""
        if name in self._creating:
            await self._creating[name].wait()
        return self._handles.get(name)

    async def _do_kill(self, name: str) -> None:
        handle = await self._find(name)
        if handle is not None:
            await asyncio.to_thread(_kill, handle)

    async def _do_check(self, name: str) -> None:
        """Tell whether an actor answers; None where it is known to be dead, which `ended` tells."""
        handle: Any = self._handles.get(name)
        alive: bool | None = None if handle is None else False
        deadline_s = time.monotonic() + PING_S
        while alive is False and time.monotonic() < deadline_s:
            try:
                async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                    alive = await handle.ping.remote()
            except Exception as error:
                if _is_death(error):
                    alive = None
                await asyncio.sleep(PING_PAUSE_S)
        self._emit("checked", {"name": name, "alive": alive})

    async def _do_request(self, bundles: list[dict[str, float]]) -> None:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(_request_nodes, bundles)


# What blocks, for threads.


def _create(
    name: str, bundle: Mapping[str, float], arguments: Mapping[str, Any], avoid: list[str]
) -> Any:
    import ray

    options: dict[str, Any] = {
        **make_options(bundle), "name": name, "lifetime": "detached", "max_restarts": 0,
        "max_task_retries": 0, "scheduling_strategy": "SPREAD",
    }  # fmt: skip
    if avoid:
        options["label_selector"] = {NODE_LABEL: f"!in({','.join(avoid)})"}
    return ray.remote(EngineOwner).options(**options).remote(arguments)


def _make_lease(holder: str) -> Any:
    """The lease's actor; None where there is one already."""
    import ray

    with contextlib.suppress(ValueError):
        return ray.remote(LeaseHolder).options(name=LEASE_NAME, num_cpus=0).remote(holder)
    return None


async def _ask_holder() -> str | None:
    import ray

    with contextlib.suppress(Exception):
        async with asyncio.timeout(PING_S):
            handle = await asyncio.to_thread(ray.get_actor, LEASE_NAME)
            return str(await handle.who.remote())
    return None


def _kill(handle: Any) -> None:
    import ray

    with contextlib.suppress(Exception):
        ray.kill(handle, no_restart=True)


def _read_nodes() -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """What each node that lives has, and what of it is free."""
    from ray._private.state import available_resources_per_node

    import ray

    alive = {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}
    free = available_resources_per_node()
    return list(alive.values()), [dict(free.get(node, {})) for node in alive]


def _request_nodes(bundles: list[dict[str, float]]) -> None:
    """Ask the autoscaler for nodes, for no more than it may start. Without one nothing happens."""
    from ray._private.state import state
    from ray.autoscaler.sdk import request_resources

    config = state.get_cluster_config()
    groups = None
    if config is not None and config.node_group_configs:
        groups = [(dict(one.resources), one.max_count) for one in config.node_group_configs]
    request_resources(bundles=[dict(one) for one in clamp_bundles(bundles, groups)])


def _is_death(error: Exception) -> bool:
    from ray.exceptions import ActorUnavailableError, RayActorError

    return isinstance(error, RayActorError) and not isinstance(error, ActorUnavailableError)


def explain_death(error: BaseException) -> str:
    """Why an actor died, in plain words where they are known."""
    text = str(error)
    if "No module named 'thrifty'" in text:
        return (
            "Thrifty is not installed on the node that Ray chose; install thrifty[ray] in the "
            "environment that Ray runs in there"
        )
    if "node" in text and ("died" in text or "dead" in text) and "worker process" not in text:
        return "its node was lost"
    if "worker process has died" in text:
        return "Ray's worker process died; the node's memory may have been used up"
    if "ray.kill" in text or "killed by" in text:
        return "its actor was killed"
    return shorten_error(error)


async def serve(address: str, namespace: str, holder: str, emit: _SENDER) -> int:
    """Connect, and serve until the controller has no more to say. Returns the exit status."""
    import ray

    try:
        await asyncio.to_thread(check_port, address)
        work = asyncio.to_thread(
            ray.init, address=address, namespace=namespace, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
        connecting = asyncio.ensure_future(work)
        await asyncio.wait({connecting}, timeout=SLOW_CONNECT_S)
        if not connecting.done():
            emit(
                "away",
                {"message": explain_connection(ConnectionError("no answer"), address, SETTING)},
            )
        await connecting
    except TimeoutError:
        emit(
            "fault", {"message": explain_connection(ConnectionError("no answer"), address, SETTING)}
        )
        return 1
    except OSError as error:
        emit("fault", {"message": explain_connection(error, address, SETTING)})
        return 1
    except Exception as error:
        emit("fault", {"message": explain_connection(error, address, SETTING)})
        return 1
    emit("connected", {"version": ray.__version__})
    reader = asyncio.StreamReader(limit=MAX_LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    await Bridge(holder, emit).run(reader)
    return 0


def main() -> None:
    """`ADDRESS NAMESPACE HOLDER`: see the module's docstring."""
    address, namespace, holder = sys.argv[1:]
    # Ray prints; events have a descriptor of their own.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(event: str, values: Mapping[str, Any]) -> None:
        events.write(json.dumps({"event": event, **values}) + "\n")

    status = asyncio.run(serve(address, namespace, holder, emit))
    # Ray's own goodbye may wait for a head that is away.
    os._exit(status)


if __name__ == "__main__":
    main()
