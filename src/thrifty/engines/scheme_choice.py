"""Which form of the weights `compress: auto` takes: by measurement, else by the processor.

Measurements are those of candidates on this very machine (`choice_benchmark`). Where the model, the load
and the candidates are those that were measured, `engines/choice` finds what was decided; this is for
all others. Nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.artifacts import Artifact, Store
from thrifty.artifacts.measurements import Measurement
from thrifty.engines.base import Engine, choose_runnable
from thrifty.engines.machine import Machine

CANDIDATE = "candidate"
"""The kind of measurements of candidates."""


@dataclass(frozen=True)
class SchemeChoice:
    """A form of the weights, and why."""

    scheme: str
    reason: str


def make_machine_conditions(engine: Engine, machine: Machine) -> dict[str, Any]:
    """What the speed of a model on `engine` depends on, beside the model and the load."""
    return {
        "engine": f"{engine.kind} {engine.traits.find_version()}".strip(),
        "machine": machine.id,
        "processor": machine.processor,
        "features": sorted(engine.find_features(machine)),
        "threads": machine.core_count,
    }


def find_candidates(
    store: Store, artifact_id: str, engine: Engine, machine: Machine
) -> dict[str, Measurement]:
    """What was measured of a checkpoint's candidates on this machine, the latest by scheme."""
    here = make_machine_conditions(engine, machine).items()
    return {
        one.conditions["scheme"]: one
        for one in store.read_measurements(artifact_id)
        if one.kind == CANDIDATE
        and here <= one.conditions.items()
        and one.values["tokens_per_s"]
        and not one.conditions.get("options")
    }


def find_measured_model(
    store: Store, engine: Engine, machine: Machine, schemes: Sequence[str]
) -> tuple[str, dict[str, Measurement]] | None:
    """The model whose candidates were measured last on this machine in all of `schemes`: its name,
    and its measurements by scheme.
    """
    found = [
        (version.label, measured)
        for version in store.versions()
        if set(schemes)
        <= set(measured := find_candidates(store, version.artifact, engine, machine))
    ]
    return max(found, key=lambda one: max(m.measured for m in one[1].values()), default=None)


def choose_scheme(
    engine: Engine, store: Store, artifact: Artifact, machine: Machine
) -> SchemeChoice:
    """What `auto` comes to for `artifact` on `machine`.

    The measured speeds decide: those of the model itself, else those of another model here. The
    smaller form wins unless the larger one is faster on (geometric) average over the loads. Without
    measurements the engine's default for the processor is taken.
    """
    candidates = engine.traits.auto_schemes
    own = find_candidates(store, artifact.id, engine, machine)
    if set(candidates) <= set(own):
        return decide("this model", own, candidates)
    other = find_measured_model(store, engine, machine, candidates)
    if other is not None:
        return decide(other[0], other[1], candidates)
    default = engine.find_default_scheme(machine)
    features = engine.find_features(machine)
    return SchemeChoice(
        choose_runnable(engine.traits.schemes, default.scheme, features), default.reason
    )


def decide(model: str, measured: dict[str, Measurement], candidates: Sequence[str]) -> SchemeChoice:
    """The best of `candidates`, which stand from the smallest to the largest, all `measured`."""
    speeds = {one: average_speed(measured[one]) for one in candidates}
    best = max(candidates, key=lambda one: speeds[one])
    said = "; ".join(f"{one} {describe_speed(measured[one])}" for one in candidates)
    return SchemeChoice(best, f"measured here with {model}: {said}")


def average_speed(measured: Measurement) -> float:
    """The geometric mean of tokens per second over the loads."""
    speeds = list(measured.values["tokens_per_s"].values())
    return math.exp(sum(math.log(max(speed, 1e-9)) for speed in speeds) / len(speeds))


def describe_speed(measured: Measurement) -> str:
    """Such as `49 / 99 / 131 tokens/s at 1 / 8 / 32 streams`."""
    found = measured.values["tokens_per_s"]
    speeds = " / ".join(f"{speed:.0f}" for speed in found.values())
    return f"{speeds} tokens/s at {' / '.join(found)} streams"
