"""How fast a stored model is on this machine, in a replica of its own, as `thrifty up` measures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import psutil

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.measurements import Measurement, find_measurement
from thrifty.bench.check import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    STREAMS,
    ServiceSpeed,
    measure_service,
    measure_texts,
)
from thrifty.engines.base import Engine, Served
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine
from thrifty.engines.scheme_choice import make_machine_conditions
from thrifty.errors import FleetError
from thrifty.home import Home
from thrifty.own_replica import has_ended, only_replica, prepare_served, run_coroutine, run_replica
from thrifty.types import Family, OnProgress, Progress, ignore_progress

SPEED = "speed"


def find_speed(store: Store, artifact: Artifact, machine: Machine) -> Measurement | None:
    """The recorded speed of a model on this machine, with this version of its engine."""
    engine = choose_engine("auto", artifact)
    conditions = make_conditions(engine, machine)
    return find_measurement(store.read_measurements(artifact.id), SPEED, conditions)


def make_conditions(engine: Engine, machine: Machine) -> dict[str, Any]:
    """What measurements of speed depend on, beside the model."""
    return {
        **make_machine_conditions(engine, machine),
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
    }


def measure_speed(
    store: Store,
    home: Home,
    version: NamedVersion,
    artifact: Artifact,
    machine: Machine,
    on_progress: OnProgress = ignore_progress,
    *,
    again: bool = False,
) -> Measurement:
    """Load time, time to first token and tokens per second at 1 and 8 streams (for an encoder or a reranker, texts
    per second) with the engine's default options. Recorded measurements are returned as they are,
    except with `again`. Checkpoints run with 16-bit weights. Blocks.

    Raises `SpecError` where the model cannot be served here, and `FleetError` and `BenchError` where
    it does not start or answer.
    """
    known = find_speed(store, artifact, machine)
    if known is not None and not again:
        return known
    engine = choose_engine("auto", artifact)
    served, values = _measure_scheme(
        engine, "none", STREAMS, store, home, version, artifact, machine, on_progress
    )
    values["form"] = _describe_form(store, served)
    values["size_bytes"] = store.load(served.artifact or artifact.id).size_bytes
    return store.record_measurement(artifact.id, SPEED, make_conditions(engine, machine), values)


def _measure_scheme(
    engine: Engine,
    scheme: str,
    loads: Sequence[int],
    store: Store,
    home: Home,
    version: NamedVersion,
    artifact: Artifact,
    machine: Machine,
    on_progress: OnProgress,
) -> tuple[Served, dict[str, Any]]:
    """Prepare a model with its weights in `scheme`, serve it, and measure it."""
    served = prepare_served(engine, scheme, store, version, artifact, machine, on_progress)
    with only_replica(home):
        busy = psutil.cpu_percent(interval=0.3) / 100
        values = run_coroutine(_try(engine, served, loads, home, store, machine, on_progress))
    return served, {**values, "busy_before": busy}


async def _try(
    engine: Engine,
    served: Served,
    loads: Sequence[int],
    home: Home,
    store: Store,
    machine: Machine,
    on_progress: OnProgress,
) -> dict[str, Any]:
    on_progress(Progress("speed_benchmark", 0, len(loads) + 1, "steps"))
    async with run_replica(served, engine, home, store, machine) as replica:
        values: dict[str, Any] = {"load_s": replica.ready_after_s}
        values |= await _measure(replica.row().url, served, loads, store, on_progress)
        if has_ended(replica):
            # Its speed cannot be told from what was measured.
            raise FleetError(f"{served.version} ended while it was measured: {replica.message}")
        row = replica.row()
        process = psutil.Process(row.pid) if row.pid else None
        with contextlib.suppress(psutil.Error):
            if process is not None:
                everyone = [process, *process.children(recursive=True)]
                values["memory_bytes"] = sum(one.memory_info().rss for one in everyone)
    on_progress(Progress("speed_benchmark", len(loads) + 1, len(loads) + 1, "steps"))
    return values


async def _measure(
    url: str, served: Served, loads: Sequence[int], store: Store, on_progress: OnProgress
) -> dict[str, Any]:
    done = 0

    def note(_: str) -> None:
        nonlocal done
        done += 1
        on_progress(Progress("speed_benchmark", done, len(loads) + 1, "steps"))

    if served.family != Family.DECODER:
        context = store.load(served.artifact).description.context_length if served.artifact else 0
        words = min(PROMPT_TOKENS, context // 2) or PROMPT_TOKENS
        found = await measure_texts(
            url, served.name, Family(served.family), words=words, on_step=note
        )
        return {"texts_per_s": {str(together): speed for together, speed in found.items()}}
    measured: ServiceSpeed = await measure_service(
        url, served.name, answer="", price_per_hour=0.0, chat=False, streams=loads, on_step=note
    )
    speeds = {str(streams): speed for streams, speed in measured.tokens_per_s.items()}
    return {"ttft_s": measured.ttft_s, "tokens_per_s": speeds}


def _describe_form(store: Store, served: Served) -> str:
    if served.artifact is None:
        return ""
    return store.load(served.artifact).description.weights or "f16"
