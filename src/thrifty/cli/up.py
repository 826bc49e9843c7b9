"""`thrifty up`: start, introduce, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from thrifty.artifacts import Store
from thrifty.bench.check import ServiceSpeed, ask_question, measure_service
from thrifty.cli.show import err, print_line, show_progress, tell
from thrifty.engines.machine import detect_machine
from thrifty.errors import BenchError, FleetError
from thrifty.fleet.controller import Controller
from thrifty.fleet.plan import Plan, make_plans
from thrifty.home import Home, find_home
from thrifty.service import Compressor, resolve_target, run_service
from thrifty.types import Family, Progress
from thrifty.units import format_bytes, format_duration

log = logging.getLogger(__name__)


def run_up(target: str | None, flags: dict[str, Any], *, measure: bool) -> None:
    """Serve until SIGINT or SIGTERM."""
    began_s = time.monotonic()
    _log_to_file(find_home())
    # From the first moment on: a stop that comes while the model is fetched must not be lost.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        loaded = resolve_target(target, flags)
        store = Store(find_home().models)
        with show_progress() as on_progress:
            machine = detect_machine()
            maker = Compressor(find_home(), store, machine, tell)
            plans = make_plans(loaded, store, machine, on_progress, maker=maker)
        asyncio.run(_serve(plans, find_home(), store, began_s, measure=measure))
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)


async def _serve(
    plans: Sequence[Plan], home: Home, store: Store, began_s: float, *, measure: bool
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

    def on_starting(controller: Controller) -> None:
        nonlocal loading
        loading = asyncio.ensure_future(show_loading(controller))

    async def on_ready(controller: Controller) -> None:
        if loading is not None:
            await loading
        if hasattr(signal, "SIGUSR1"):
            loop.add_signal_handler(
                signal.SIGUSR1, lambda: replacing.add(loop.create_task(_replace(controller)))
            )
        await _introduce(controller, began_s, measure=measure)

    try:
        await run_service(
            plans,
            home,
            store,
            stopping,
            on_ready=on_ready,
            on_starting=on_starting,
            on_kill=killing,
        )
    finally:
        if loading is not None:
            loading.cancel()
    err.print("Stopped; nothing is left running.")


async def _replace(controller: Controller) -> None:
    try:
        await controller.replace_gateways()
    except FleetError as error:
        log.error("the gateway was not replaced: %s", error)


async def show_loading(controller: Controller) -> None:
    """A bar of the replicas that are ready, until all are."""
    with show_progress() as on_progress:
        while True:
            replicas = controller.replicas
            ready = sum(replica.ready_once.is_set() for replica in replicas)
            on_progress(Progress("load", ready, len(replicas) or 1, "replicas ready"))
            if replicas and ready == len(replicas):
                return
            await asyncio.sleep(0.1)


async def _introduce(controller: Controller, began_s: float, *, measure: bool) -> None:
    """Say what runs; ask each model a question and measure it, where that is wanted and possible."""
    for plan in controller.plans:
        await _introduce_one(controller, plan, began_s, measure=measure)
    print_line("Ctrl-C drains and stops everything.")


async def _introduce_one(
    controller: Controller, plan: Plan, began_s: float, *, measure: bool
) -> None:
    served = plan.served
    url = controller.gateway_url
    replicas = controller.replicas_of(served.name)
    load_s = max((replica.ready_after_s for replica in replicas), default=0.0)
    key = os.environ.get("THRIFTY_KEY")
    may_measure = measure and served.family == Family.DECODER and not plan.engine.traits.external
    measured: ServiceSpeed | None = None
    if may_measure:
        try:
            answer, _ = await ask_question(url, served.name, key)
            first_s = time.monotonic() - began_s
            print_line(f"\nQ: {'What is the capital of France?'}\nA: {answer}")
            with err.status("Measuring...") as status:
                measured = await measure_service(
                    url, served.name, answer=answer, key=key,
                    price_per_hour=plan.spec.price_per_hour,
                    on_step=lambda step: status.update(f"Measuring {step}..."),
                )  # fmt: skip
        except BenchError as error:
            err.print(f"Not measured: {error}")
    print_line()
    print_line(f"{served.name} is served at {url}/v1")
    print_line(
        f"  version           {served.version}, engine {served.engine}, "
        f"{len(replicas)} replica{'s' if len(replicas) > 1 else ''}"
    )
    if measured is not None:
        memory = sum(replica.row().memory_bytes or 0 for replica in replicas)
        print_line(
            f"  load time         {format_duration(load_s)}; first answer "
            f"{format_duration(first_s)} after the command"
        )
        print_line(f"  first token       {format_duration(measured.ttft_s)}")
        for streams, speed in measured.tokens_per_s.items():
            print_line(
                f"  {streams} stream{'s' if streams > 1 else ' '}         {speed:.0f} tokens/s"
            )
        print_line(f"  memory            {format_bytes(memory)}")
        print_line(
            f"  cost              {measured.cost_per_million_tokens:.3f} per million tokens "
            f"at {measured.price_per_hour:g} an hour"
        )
    print_line()
    print_line(_curl(url, served.name, served.family, key is not None))
    print_line()


def _curl(url: str, name: str, family: str, with_key: bool) -> str:
    auth = ' -H "Authorization: Bearer $THRIFTY_KEY"' if with_key else ""
    if family == Family.ENCODER:
        path, body = "embeddings", f'{{"model": "{name}", "input": "Hello"}}'
    else:
        message = '[{"role": "user", "content": "Hello"}]'
        path, body = "chat/completions", f'{{"model": "{name}", "messages": {message}}}'
    return f"curl {url}/v1/{path} -H 'Content-Type: application/json'{auth} \\\n  -d '{body}'"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _log_to_file(home: Home) -> None:
    from thrifty.home import make_private_folder

    make_private_folder(home.logs)
    logging.basicConfig(
        filename=home.logs / "controller.log",
        level=os.environ.get("THRIFTY_LOG", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
