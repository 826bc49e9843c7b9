"""Replicas that no service knows: one model, served as a fleet serves it, for one piece of work.

No other part of a service runs: no gateway, no database. One model at a time is served so in a home.
The next one, `thrifty up` and `thrifty down` end whatever a killed process left running.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psutil

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.disk import lock_file
from thrifty.engines.base import Engine, Served
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine
from thrifty.errors import FleetError, SpecError
from thrifty.evaluate.answers import ServeModel
from thrifty.evaluate.asking import Serve
from thrifty.fleet.cores import choose_cores, share_evenly
from thrifty.fleet.local_replica import LocalReplica
from thrifty.fleet.process import find_ours
from thrifty.home import Home
from thrifty.spec import Spec
from thrifty.spec.compress import CompressSpec
from thrifty.spec.models import EngineSpec, ReplicasSpec
from thrifty.types import OnProgress, ReplicaState, ignore_progress

T = TypeVar("T")

START_TIMEOUT_S = 600.0
_ID = "own-replica-"
_WATCH_S = 0.1
_NOTICE_S = 3.0
"""How long a replica may take to notice that its process has ended."""


def prepare_served(
    engine: Engine,
    scheme: str,
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    machine: Machine,
    on_progress: OnProgress = ignore_progress,
    *,
    options: Mapping[str, Any] | None = None,
    replicas: int = 1,
) -> Served:
    """Prepare a model with its weights in `scheme`, with the engine's `options`, for so many
    replicas. Raises `SpecError` where it cannot be served here.
    """
    spec = make_spec(engine, scheme, options or {}, replicas)
    problems = engine.check(spec, artifact, machine)
    if problems:
        raise SpecError(problems, version.label)
    served = engine.prepare(spec, (version, artifact), store, machine, on_progress)
    store.verify(store.load(served.artifact or artifact.id))
    return served


def make_spec(engine: Engine, scheme: str, options: Mapping[str, Any], replicas: int) -> Spec:
    """The spec of replicas that no service knows."""
    return Spec(
        name="own-replica",
        compress=CompressSpec.model_validate({"quantize": {"scheme": scheme}}),
        engine=EngineSpec.model_validate({"kind": engine.kind, **options}),
        replicas=ReplicasSpec(count=replicas),
    )


@contextlib.contextmanager
def only_replica(home: Home) -> Iterator[None]:
    """Wait until no other replica of this kind runs in the home, and end those that were left."""
    with lock_file(home.run / "own_replica.lock"):
        for ident, _, process_id in find_ours(home.root):
            process = ident.find()
            if process_id.startswith(_ID) and process is not None:
                with contextlib.suppress(psutil.Error):
                    for one in [*process.children(recursive=True), process]:
                        one.kill()
        yield


@contextlib.asynccontextmanager
async def run_replica(
    served: Served, engine: Engine, home: Home, store: Store, machine: Machine
) -> AsyncIterator[LocalReplica]:
    """A replica that is ready, on all cores; it is stopped afterwards. Raises `FleetError` if it
    does not start.
    """
    async with run_replicas(served, engine, home, store, machine, 1) as replicas:
        yield replicas[0]


@contextlib.asynccontextmanager
async def run_replicas(
    served: Served, engine: Engine, home: Home, store: Store, machine: Machine, count: int
) -> AsyncIterator[list[LocalReplica]]:
    """So many replicas that are ready, which share the cores evenly; they are stopped afterwards.
    Raises `FleetError` if one does not start.
    """
    size, larger = share_evenly(machine.core_count, count)
    use: Counter[int] = Counter()
    replicas = []
    for number in range(count):
        cores = choose_cores(machine.cores, use, size + (number < larger))
        use.update(cores)
        replicas.append(
            LocalReplica(
                f"{_ID}{number}", served, engine, home=home, store=store, cores=cores,
                memory_share=1.0 / count, memory_limit=None, start_timeout_s=START_TIMEOUT_S,
                on_change=lambda: None,
            )
        )  # fmt: skip
    for replica in replicas:
        replica.start()
    try:
        for replica in replicas:
            await _wait_ready(replica, home)
        yield replicas
    finally:
        await asyncio.gather(*(replica.stop(grace_s=10.0) for replica in replicas))


async def _wait_ready(replica: LocalReplica, home: Home) -> None:
    waiting = asyncio.ensure_future(replica.ready_once.wait())
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=_WATCH_S)
        if replica.restarts:
            break
    waiting.cancel()
    if replica.state is not ReplicaState.READY:
        raise FleetError(
            f"{replica.served.version} does not start: {replica.message}; its log is "
            f"{home.log_of(replica.id)}"
        )


def has_ended(replica: LocalReplica) -> bool:
    """Whether the process of a replica that was ready has ended, or does not answer."""
    return replica.restarts > 0 or replica.state is not ReplicaState.READY


def use_replica(
    store: Store,
    home: Home,
    version: NamedVersion,
    artifact: Artifact,
    machine: Machine,
    use: Callable[[str, str], None],
    on_progress: OnProgress = ignore_progress,
    *,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Call `use(url, name)` in a thread while the model is served at `url` under `name`; a
    checkpoint has 16-bit weights. `options` are the engine's. Blocks.

    Raises what `use` raises, `SpecError` where the model cannot be served here, and `FleetError`
    where it does not start, or ends meanwhile.
    """
    engine = choose_engine("auto", artifact)
    served = prepare_served(
        engine, "none", store, version, artifact, machine, on_progress, options=options
    )
    with only_replica(home):
        run_coroutine(_use(served, engine, home, store, machine, use))


async def _use(
    served: Served,
    engine: Engine,
    home: Home,
    store: Store,
    machine: Machine,
    use: Callable[[str, str], None],
) -> None:
    async with run_replica(served, engine, home, store, machine) as replica:
        working = asyncio.ensure_future(asyncio.to_thread(use, replica.row().url, served.name))
        while not working.done() and not has_ended(replica):
            await asyncio.wait({working}, timeout=_WATCH_S)
        if working.done() and working.exception() is not None:
            # Its requests may fail before the replica notices that its process has ended.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NOTICE_S):
                    while not has_ended(replica):
                        await asyncio.sleep(_WATCH_S)
        if has_ended(replica):
            fault = FleetError(
                f"{served.version} ended while it was asked: {replica.message}; its log is "
                f"{home.log_of(replica.id)}"
            )
            await replica.stop(grace_s=1.0)
            await asyncio.wait({working})
            raise fault from working.exception()
        working.result()


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop of its own, also where one runs already in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def make_server(
    store: Store, home: Home, machine: Machine, options: Mapping[str, Any] | None = None
) -> ServeModel:
    """Serves stored models, one at a time, while they are asked; `options` are the engine's."""

    def serve(version: NamedVersion, artifact: Artifact, on_progress: OnProgress) -> Serve:
        return lambda use: use_replica(
            store, home, version, artifact, machine, use, on_progress, options=options
        )  # fmt: skip

    return serve
