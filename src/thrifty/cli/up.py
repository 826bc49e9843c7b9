"""`thrifty up`: plan, apply, wait; then introduce what runs, and stop it in the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.artifacts import Store
from thrifty.bench.check import ServiceSpeed, ask_question, measure_service
from thrifty.cli.apply import show_held
from thrifty.cli.keys import keep_keys
from thrifty.cli.show import err, print_line, show_progress, tell
from thrifty.control.controller import Controller
from thrifty.control.plan import Plan
from thrifty.control.prepare import Prepared
from thrifty.control.service_api import Actor, Applied, plan_spec, prepare_spec
from thrifty.db.desired import read_desired
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.keys import list_keys
from thrifty.engines.machine import detect_machine
from thrifty.errors import BenchError, FleetError
from thrifty.fleet.base import ObservedReplica
from thrifty.home import Home, find_home
from thrifty.http.process import read_log_formatter
from thrifty.model_maker import Compressor
from thrifty.service import require_stopped, resolve_target, run_service
from thrifty.types import Family, Progress
from thrifty.units import format_bytes, format_duration

log = logging.getLogger(__name__)


def run_up(
    target: str | None,
    flags: dict[str, Any],
    *,
    measure: bool,
    reset: bool,
    keys: Sequence[str] = (),
) -> None:
    """Serve until SIGINT or SIGTERM. `keys` are API keys to have, as `ROLE=VARIABLE`."""
    began_s = time.monotonic()
    home = find_home()
    _log_to_file(home)
    # From the first moment on: a stop that comes while the model is fetched must not be lost.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        loaded = resolve_target(target, flags)
        require_stopped(home)
        keep_keys(loaded.spec.database or home.database_url, keys)
        machine, store = detect_machine(), Store(home.models)
        maker = Compressor(home, store, machine, tell)
        _tell_plan(plan_spec(loaded, home, maker=maker, reset=reset))
        with show_progress() as on_progress:
            prepared = prepare_spec(loaded, home, machine, on_progress, maker=maker)
        asyncio.run(_serve(prepared, home, store, began_s, measure=measure, reset=reset))
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)


def _tell_plan(plan: Plan) -> None:
    """Say what comes before anything starts, and takes a while."""
    for verb, items in (("Fetching", plan.fetch), ("Preparing", plan.prepare)):
        for item in items:
            parts = [verb, item.what]
            if item.size_bytes is not None:
                parts.append(f"({format_bytes(item.size_bytes)})")
            if item.seconds is not None:
                parts.append(f"in about {format_duration(item.seconds)}")
            tell(" ".join(parts))


async def _serve(
    prepared: Prepared, home: Home, store: Store, began_s: float, *, measure: bool, reset: bool
) -> None:
    loop = asyncio.get_running_loop()
    stopping, killing = asyncio.Event(), asyncio.Event()

    def note_signal() -> None:
        if stopping.is_set():
            err.print("Stopping at once.")
            killing.set()
        else:
            err.print("\nDraining; once more stops at once.")
            stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, note_signal)
    if hasattr(signal, "SIGHUP"):
        # A closed terminal stops the service as Ctrl-C does.
        loop.add_signal_handler(signal.SIGHUP, stopping.set)

    loading: asyncio.Task[None] | None = None
    replacing: set[asyncio.Task[None]] = set()

    def on_starting(controller: Controller, applied: Applied) -> None:
        nonlocal loading
        show_held(applied, reset=reset)
        controller.on_wait = lambda holder: err.print(
            f"The controller {holder} acts; this one waits to take over."
        )
        loading = asyncio.ensure_future(show_loading(controller))

    async def on_ready(controller: Controller) -> None:
        if loading is not None:
            await loading
        if hasattr(signal, "SIGUSR1"):
            loop.add_signal_handler(
                signal.SIGUSR1, lambda: replacing.add(loop.create_task(_replace(controller)))
            )
        await _introduce(controller, prepared, began_s, measure=measure)

    try:
        await run_service(
            prepared, home, store, stopping, Actor.from_user("thrifty up"),
            on_ready=on_ready, on_starting=on_starting, on_kill=killing, reset=reset,
        )  # fmt: skip
    finally:
        if loading is not None:
            loading.cancel()
    elsewhere = prepared.service.fleet
    left = "replicas go on for the next controller" if elsewhere else "nothing is left running"
    err.print(f"Stopped; {left}.")


async def _replace(controller: Controller) -> None:
    try:
        await controller.replace_gateways()
    except FleetError as error:
        log.error("the gateway was not replaced: %s", error)


async def show_loading(controller: Controller) -> None:
    """A bar of the replicas that are ready, until all are; at zero there may be none."""
    with show_progress() as on_progress:
        while True:
            ready, wanted = controller.count_ready()
            on_progress(Progress("load", ready, wanted or 1, "replicas ready"))
            if (wanted and ready == wanted) or controller.is_settled():
                return
            await asyncio.sleep(0.1)


async def _introduce(
    controller: Controller, prepared: Prepared, began_s: float, *, measure: bool
) -> None:
    """Say what runs; ask each model a question and measure it, where that is wanted and possible."""
    desired = await asyncio.to_thread(read_desired, controller.database)
    price = prepared.service.capacity.price_per_hour
    needs_key = bool(await asyncio.to_thread(list_keys, controller.database))
    for state in desired.deployments.values():
        shown = _Shown(controller.gateway_url, state, controller.observe, price, needs_key)
        await _introduce_one(shown, began_s, measure)
    print_line("Ctrl-C drains and stops everything.")


@dataclass(frozen=True)
class _Shown:
    """One deployment, and what runs of it."""

    url: str
    state: DesiredDeployment
    observe: Callable[[], list[ObservedReplica]]
    """Gives every replica of the service; at zero the first question starts one."""
    price_per_hour: float
    needs_key: bool
    """Whether requests need an API key."""

    @property
    def replicas(self) -> list[ObservedReplica]:
        """What runs of it now."""
        return [one for one in self.observe() if one.key.deployment == self.state.name]

    def can_be_measured(self) -> bool:
        """Whether its speed is that of one version, which runs here."""
        active = [version for version in self.state.versions if version.weight > 0]
        return self.state.family == Family.DECODER and len(active) == 1 and not active[0].urls

    def count(self, version: DesiredVersion) -> str:
        """How many replicas a version has, in words."""
        count = sum(one.key.version == version.label for one in self.replicas)
        if not count and version.settings.wakes:
            return "no replica; the first request starts one"
        return f"{count} replica{'s' if count != 1 else ''}"


async def _introduce_one(shown: _Shown, began_s: float, measure: bool) -> None:
    name, url = shown.state.name, shown.url
    key = os.environ.get("THRIFTY_KEY")
    measured: ServiceSpeed | None = None
    first_s, chat = 0.0, True
    if measure and shown.can_be_measured() and shown.needs_key and not key:
        err.print(
            "Not measured: this service has API keys, and their secrets are stored nowhere. Set "
            "THRIFTY_KEY to one of them to see an answer and its speed."
        )
    elif measure and shown.can_be_measured():
        try:
            answer = await ask_question(url, name, key)
            first_s, chat = time.monotonic() - began_s, answer.chat
            print_line(f"\nQ: {answer.prompt}\nA: {answer.text}")
            with err.status("Measuring...") as status:
                measured = await measure_service(
                    url, name, answer=answer.text, key=key, chat=chat,
                    price_per_hour=shown.price_per_hour,
                    on_step=lambda step: status.update(f"Measuring {step}..."),
                )  # fmt: skip
        except BenchError as error:
            err.print(f"Not measured: {error}")
    print_line()
    print_line(f"{name} is served at {url}/v1")
    _show_versions(shown)
    if measured is not None:
        _show_speed(measured, shown.replicas, first_s)
    print_line()
    print_line(_curl(url, name, shown.state.family, shown.needs_key, chat))
    print_line()


def _show_versions(shown: _Shown) -> None:
    versions = shown.state.versions
    total = sum(version.weight for version in versions)
    for version in versions:
        share = f", {version.weight / total:.0%} of the traffic" if len(versions) > 1 else ""
        print_line(
            f"  version           {version.label}, engine {version.engine}, "
            f"{shown.count(version)}{share}"
        )
    for one in shown.replicas:
        if one.row.message is not None:
            print_line(f"  {one.row.id:<17} {one.row.message}")


def _show_speed(
    measured: ServiceSpeed, replicas: Iterable[ObservedReplica], first_s: float
) -> None:
    load_s = max((one.ready_after_s for one in replicas), default=0.0)
    memory = sum(one.row.memory_bytes or 0 for one in replicas)
    print_line(
        f"  load time         {format_duration(load_s)}; first answer "
        f"{format_duration(first_s)} after the command"
    )
    print_line(f"  first token       {format_duration(measured.ttft_s)}")
    for streams, speed in measured.tokens_per_s.items():
        print_line(
            f"  {streams} stream{'s' if streams > 1 else ' '}         {_show_rate(speed)} tokens/s"
        )
    print_line(f"  memory            {format_bytes(memory)}")
    print_line(
        f"  cost              {measured.cost_per_million_tokens:.3f} per million tokens "
        f"at {measured.price_per_hour:g} an hour"
    )


def _show_rate(speed: float) -> str:
    """A speed in digits that tell it from none."""
    return f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"


def _curl(url: str, name: str, family: str, with_key: bool, chat: bool) -> str:
    auth = ' -H "Authorization: Bearer $THRIFTY_KEY"' if with_key else ""
    if family == Family.ENCODER:
        path, body = "embeddings", f'{{"model": "{name}", "input": "Hello"}}'
    elif family == Family.RERANKER:
        documents = '["Paris is a city", "Cats sleep"]'
        path, body = "rerank", f'{{"model": "{name}", "query": "Where?", "documents": {documents}}}'
    elif not chat:
        path, body = "completions", f'{{"model": "{name}", "prompt": "Hello"}}'
    else:
        message = '[{"role": "user", "content": "Hello"}]'
        path, body = "chat/completions", f'{{"model": "{name}", "messages": {message}}}'
    return f"curl {url}/v1/{path} -H 'Content-Type: application/json'{auth} \\\n  -d '{body}'"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _log_to_file(home: Home) -> None:
    from thrifty.home import make_private_folder

    make_private_folder(home.logs)
    handler = logging.FileHandler(home.logs / "controller.log")
    handler.setFormatter(read_log_formatter())
    logging.basicConfig(level=os.environ.get("THRIFTY_LOG", "INFO"), handlers=[handler])
