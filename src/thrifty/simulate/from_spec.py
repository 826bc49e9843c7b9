"""What a spec says of a simulation: its objective, bounds, limits, and how fast its replicas are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from thrifty.artifacts import Store
from thrifty.bench.check import OUTPUT_TOKENS
from thrifty.bench.client import Target
from thrifty.control.machine_price import find_reported_price
from thrifty.engines.base import Engine, Served, parse_options
from thrifty.engines.machine import Machine
from thrifty.engines.probe import read_server_load
from thrifty.engines.registry import choose_engine
from thrifty.errors import SimulationError
from thrifty.gateway.routing import POLICIES
from thrifty.http.client import TransportError
from thrifty.http.origin import parse_origin
from thrifty.simulate.measure import measure_rates
from thrifty.simulate.rates import ReplicaRates, make_benchmark_rates, make_echo_rates
from thrifty.simulate.scaler import MOST, Bounds, Objective
from thrifty.simulate.world import Setup
from thrifty.spec import Spec
from thrifty.spec.scaling import IDLE_AFTER_S
from thrifty.speed_benchmark import find_speed
from thrifty.types import OnProgress

CHUNK_TOKENS = 256
"""Of an engine whose options do not say how many tokens of prompts it computes in one step."""
_PACE = {"ttft", "tpot", "prefill", "slots", "cache", "load"}
"""Options of an engine that states its own pace."""


def find_name(spec: Spec) -> str:
    """What a spec's replicas are called in results."""
    return spec.name or spec.model.rpartition(":")[2].rpartition("/")[2]


def find_rates(spec: Spec, store: Store, machine: Machine) -> ReplicaRates:
    """The rates of a spec's replicas: what its engine's options state, or else what was measured of
    its model on this machine. Fetches and measures nothing.

    Raises `SimulationError` where nothing is known.
    """
    name, price = find_name(spec), find_price(spec, machine)
    stored = store.find_requested(spec.model)
    if stored is None and store.has_name(spec.model.partition("@")[0]):
        stored = store.find(spec.model)
    engine = choose_engine(spec.engine.kind, stored[1] if stored is not None else None)
    options = parse_options(engine, spec).model_dump()
    if options.keys() >= _PACE:
        return make_echo_rates(name, options, price)
    speed = find_speed(store, stored[1], machine) if stored is not None else None
    if speed is None or "tokens_per_s" not in speed.values:
        raise SimulationError(
            f"nothing is known of the speed of {spec.model} here. Serve it (thrifty up) and measure "
            "one replica: thrifty simulate SPEC --fit URL; or pass a file with --rates"
        )
    return make_benchmark_rates(
        name,
        speed.values,
        slots=find_slots(spec, engine, options),
        chunk_tokens=find_chunk(options),
        output_tokens=OUTPUT_TOKENS,
        price_per_hour=price,
    )


def find_slots(spec: Spec, engine: Engine, options: dict[str, object]) -> int:
    """How many requests the gateway gives to a replica at once."""
    if spec.replicas.slots is not None:
        return spec.replicas.slots
    name = find_name(spec)
    served = Served(name, engine.kind, name, "simulated", "decoder", options=options)
    slots = engine.find_slots(served)
    if slots is None:
        raise SimulationError(
            f"replicas.slots: the engine {engine.kind} does not say how many requests it runs at "
            "once; set replicas.slots"
        )
    return slots


def find_chunk(options: dict[str, object]) -> int:
    """How many tokens of prompts a replica computes in one step."""
    chunk = options.get("prefill_chunk")
    return chunk if isinstance(chunk, int) else CHUNK_TOKENS


def find_price(spec: Spec, machine: Machine) -> float:
    """What a replica costs an hour: its share of the machine's cores; all of them by default."""
    cpus = spec.replicas.cpus or machine.core_count
    return find_reported_price(spec) * min(1.0, cpus / machine.core_count)


def find_setup(
    spec: Spec,
    rates: ReplicaRates,
    *,
    seed: int = 0,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    least: int | None = None,
    most: int | None = None,
    routing: str | None = None,
    start_s: float | None = None,
    warm_up_s: float = 0.0,
) -> Setup:
    """What is simulated: the spec's values, unless others are given.

    Raises `SimulationError` for an objective or bounds that cannot be.
    """
    for name, value in (("TTFT", ttft_s), ("TPOT", tpot_s)):
        if value is not None and value <= 0:
            raise SimulationError(f"an objective for the {name} is above 0, not {value:g} s")
    if routing is not None and routing not in POLICIES:
        raise SimulationError(f"there is no routing {routing!r}; there are {', '.join(POLICIES)}")
    bounds = spec.replicas.bounds or (1, spec.replicas.count)
    low = bounds[0] if least is None else least
    high = max(bounds[1], low) if most is None else most
    if not 0 <= low <= high <= MOST or high < 1:
        raise SimulationError(
            f"from {low} to {high} replicas cannot be: there are at least 0, at most {MOST}, and the "
            "least is not above the most"
        )
    objective = Objective(
        spec.slo.ttft_p95 if ttft_s is None else ttft_s,
        spec.slo.tpot_p95 if tpot_s is None else tpot_s,
    )
    if start_s is not None:
        rates = replace(rates, start_s=start_s)
    slots = spec.replicas.slots
    if slots is not None:
        rates = replace(rates, slots=slots)
    return Setup(
        rates, objective, Bounds(low, high), routing or spec.routing, spec.limits.waiting,
        spec.limits.wait_timeout, seed=seed,
        warm_up_s=warm_up_s,
        idle_after_s=spec.replicas.idle_after or IDLE_AFTER_S,
    )  # fmt: skip


def measure_spec(
    spec: Spec, machine: Machine, url: str, key: str | None, on_progress: OnProgress
) -> ReplicaRates:
    """The rates of one running replica of a spec, measured at `url`."""
    engine = choose_engine(spec.engine.kind, None)
    options = parse_options(engine, spec).model_dump()
    facts: Mapping[str, Any] = {}
    with contextlib.suppress(TransportError, OSError, msgspec.DecodeError):
        # Only our own servers report their facts; without them there is no cache in the rates.
        facts = asyncio.run(read_server_load(url.rstrip("/"))).facts
    try:
        origin = parse_origin(url.rstrip("/"))
    except ValueError as error:
        raise SimulationError(f"--fit: {error}") from None
    name = find_name(spec)
    return asyncio.run(
        measure_rates(
            Target(origin, name, key, is_measurement=True),
            name,
            slots=find_slots(spec, engine, options),
            chunk_tokens=find_chunk(options),
            cache_tokens=int(facts.get("kv_cache_tokens") or 0),
            start_s=float(facts.get("load_s") or 0.0),
            price_per_hour=find_price(spec, machine),
            on_progress=on_progress,
        )
    )
