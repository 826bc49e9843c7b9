"""Which machines of a cloud hold a model and a load, how fast, and at what price."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from thrifty.artifacts import Artifact, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.deploy.machine_model import ModelSize, predict_roofline_s, predict_step_s
from thrifty.deploy.service import DeployedService, DeployedVersion
from thrifty.deploy.sizing import (
    GATEWAY_BYTES,
    MARGIN,
    find_artifact,
    find_scheme,
)
from thrifty.errors import Problem, SpecError, ThriftyError
from thrifty.prices.table import Instance, PriceTable
from thrifty.types import Family

UTILISATION = 0.8
"""Waiting grows without bound as a machine nears its full rate, so it is planned for less."""
MAX_STREAMS = 256
_KV_BYTES = 1
"""Keys and values are kept in 8 bits on processors..."""
_GPU_BYTES = 2
"""... and in 16 on accelerators, as are weights."""


@dataclass(frozen=True)
class Load:
    """What the service has to give."""

    tokens_per_s: float
    """Of answers, over all streams, at the busiest time."""
    tpot_s: float
    """The longest time between two tokens of a stream."""
    context: int
    """Tokens of prompt and answer, on average."""


@dataclass(frozen=True)
class Shape:
    """The size of a decoder, before it gets a form."""

    parameters: int
    layers: int
    kv_values_per_token: int


@dataclass(frozen=True)
class Choice:
    """One way to run it."""

    instance: str
    region: str
    accelerator: str | None
    count: int
    streams: int
    tokens_per_s: float
    """Of one machine, within the objective; 0 where it does not meet that."""
    per_hour: float
    spot_per_hour: float | None
    per_month: float
    per_million_tokens: float | None
    """At the stated load."""
    meets_slo: bool
    why_not: str | None
    source: str

    def to_builtins(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in vars(self).items()
        }


def choose_version(service: DeployedService, label: str | None) -> DeployedVersion:
    """The version to plan for. Raises `ThriftyError` where it is not said which."""
    found = [one for one in service.own_versions if label in (None, one.label)]
    if len(found) == 1:
        return found[0]
    labels = ", ".join(f"{one.deployment}/{one.label}" for one in service.own_versions) or "none"
    raise ThriftyError(f"name one version with --version; the spec has {labels}")


def find_shape(version: DeployedVersion, store: Store) -> Shape:
    """The size of its model, as the store has it. Raises `SpecError`."""
    artifact: Artifact | None = None
    if version.engine.traits.loads_model:
        artifact = find_artifact(version, store)
    if artifact is None:
        message = (
            f"the size of {version.spec.model} is not known here: fetch it (thrifty pull "
            f"{version.spec.model}), or give its size (--parameters 8B --layers 36 --kv-values 73728)"
        )
        raise SpecError([Problem("model", message)])
    if artifact.description.family is not Family.DECODER:
        raise SpecError([Problem("model", "is an encoder; plans are made for decoders")])
    shape = load_decoder(store.folder_of(artifact.id)).shape
    return Shape(artifact.description.parameters, shape.layers, shape.kv_values_per_token)


def make_plan(
    version: DeployedVersion,
    shape: Shape,
    load: Load,
    machines: tuple[Instance, ...],
    table: PriceTable,
) -> list[Choice]:
    """Every machine, the cheapest that meets the objective first, then those that do not."""
    choices = [_judge(version, shape, load, one, table) for one in machines]
    return sorted(choices, key=lambda one: (not one.meets_slo, one.per_hour, one.instance))


def _judge(
    version: DeployedVersion, shape: Shape, load: Load, machine: Instance, table: PriceTable
) -> Choice:
    prices = f"{table.sources[machine.cloud]}, read {table.read}"
    if machine.accelerator is None:
        source = f"speed: fitted on our own measurements; price: {prices}"
        steps = _steps_on_processor(version, shape, load, machine)
        room = _find_room_on_processor(version, shape, load, machine)
    else:
        known = table.accelerators[machine.accelerator]
        source = f"speed: roofline, an upper bound ({known.source}); price: {prices}"
        steps = _steps_on_accelerator(shape, load, machine, table)
        room = _find_room_on_accelerator(shape, load, machine, table)
    if room < 1:
        return _refuse(machine, source, _describe_room(version, shape, machine, table))
    best: tuple[int, float] | None = None
    first = 0.0
    for streams, step_s in steps:
        first = first or step_s
        if streams <= room and step_s <= load.tpot_s:
            best = streams, streams / step_s
    if best is None:
        return _refuse(
            machine, source,
            f"one stream alone takes {first * 1000:.0f} ms a token, more than "
            f"{load.tpot_s * 1000:.0f} ms",
        )  # fmt: skip
    streams, rate = best
    count = max(1, math.ceil(load.tokens_per_s / (rate * UTILISATION)))
    per_hour = count * machine.per_hour
    notes = [machine.note] if machine.note else []
    if machine.accelerator is not None:
        notes.append("needs a server of yours, used by the engine 'remote'")
    return Choice(
        machine.instance, machine.region, machine.accelerator, count, streams, rate, per_hour,
        None if machine.spot_per_hour is None else count * machine.spot_per_hour,
        per_hour * 730, per_hour / (load.tokens_per_s * 3600) * 1e6, True, None,
        "; ".join([source, *notes]),
    )  # fmt: skip


def _refuse(machine: Instance, source: str, why: str) -> Choice:
    return Choice(
        machine.instance, machine.region, machine.accelerator, 0, 0, 0.0, machine.per_hour,
        machine.spot_per_hour, machine.per_hour * 730, None, False, why, source,
    )  # fmt: skip


def _list_streams() -> Iterator[int]:
    streams = 1
    while streams <= MAX_STREAMS:
        yield streams
        streams *= 2


def make_size(version: DeployedVersion, shape: Shape) -> ModelSize:
    """The model in the form that its version gives it, on a processor."""
    scheme = find_scheme(version)
    weights = version.engine.traits.schemes.get(scheme)
    per_weight = weights.bytes_per_weight if weights is not None else 2.0
    return ModelSize(
        shape.parameters, shape.layers, round(shape.parameters * per_weight),
        shape.kv_values_per_token * _KV_BYTES, scheme,
    )  # fmt: skip


def _steps_on_processor(
    version: DeployedVersion, shape: Shape, load: Load, machine: Instance
) -> Iterator[tuple[int, float]]:
    size = make_size(version, shape)
    for streams in _list_streams():
        yield (
            streams,
            predict_step_s(size, streams, load.context, machine.vcpus, machine.memory_gb_s),
        )


def _find_room_on_processor(
    version: DeployedVersion, shape: Shape, load: Load, machine: Instance
) -> int:
    """How many streams fit the machine's memory beside weights, libraries and the gateway."""
    size = make_size(version, shape)
    fixed = MARGIN * (size.weights_bytes + version.engine.traits.runtime_bytes) + 2 * GATEWAY_BYTES
    each = max(1.0, load.context * size.kv_bytes_per_token)
    return math.floor((machine.memory_bytes - fixed) / each)


def _size_on_accelerator(shape: Shape) -> ModelSize:
    return ModelSize(
        shape.parameters, shape.layers, shape.parameters * _GPU_BYTES,
        shape.kv_values_per_token * _GPU_BYTES,
    )  # fmt: skip


def _steps_on_accelerator(
    shape: Shape, load: Load, machine: Instance, table: PriceTable
) -> Iterator[tuple[int, float]]:
    known = table.accelerators[machine.accelerator or ""]
    size = _size_on_accelerator(shape)
    for streams in _list_streams():
        yield (
            streams,
            predict_roofline_s(
                size, streams, load.context, known.memory_gb_s, known.tflops, machine.accelerators
            ),
        )


def _find_room_on_accelerator(
    shape: Shape, load: Load, machine: Instance, table: PriceTable
) -> int:
    known = table.accelerators[machine.accelerator or ""]
    size = _size_on_accelerator(shape)
    memory = known.memory_gb * 1e9 * machine.accelerators
    each = max(1.0, load.context * size.kv_bytes_per_token)
    return math.floor((memory / MARGIN - size.weights_bytes) / each)


def _describe_room(
    version: DeployedVersion, shape: Shape, machine: Instance, table: PriceTable
) -> str:
    if machine.accelerator is None:
        size = make_size(version, shape)
        return (
            f"{size.weights_bytes / 1e9:.1f} GB of weights, libraries and the gateway do not fit "
            f"{machine.memory_gib:g} GiB"
        )
    known = table.accelerators[machine.accelerator]
    return (
        f"{shape.parameters * _GPU_BYTES / 1e9:.1f} GB of 16-bit weights and keys and values do not "
        f"fit {machine.accelerators} x {known.memory_gb:g} GB"
    )


__all__ = [
    "Choice",
    "Load",
    "Shape",
    "choose_version",
    "find_shape",
    "make_plan",
]
