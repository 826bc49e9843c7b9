"""How much memory and how many cores a version needs, from what the store knows of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from thrifty.artifacts import Artifact, Store
from thrifty.deploy.service import DeployedVersion
from thrifty.engines.base import count_kv_bytes, parse_options
from thrifty.errors import ArtifactError, Problem, SpecError

MIB = 1 << 20
MARGIN = 1.25
"""Over the estimate: fragmentation, and what requests hold while they run."""
GATEWAY_BYTES = 512 * MIB
"""The controller and a gateway worker with an exact cache that is full."""
_STEP = 128 * MIB


@dataclass(frozen=True)
class Need:
    """What one replica needs."""

    memory_bytes: int
    cpus: int
    weights_bytes: int = 0
    disk_bytes: int = 0
    """The checkpoint and what is prepared from it."""
    parameters: int = 0


def find_need(
    version: DeployedVersion, store: Store, memory_bytes: int | None, cpus: int | None
) -> Need:
    """What one replica of `version` needs. `memory_bytes` and `cpus` are what the user says it gets.
    Raises `SpecError` where the store does not know the model and the user says nothing.
    """
    cores = cpus or version.spec.replicas.cpus or 2
    if not version.engine.traits.loads_model:
        return Need(memory_bytes or _round_up(GATEWAY_BYTES), cores)
    artifact = find_artifact(version, store)
    if artifact is None:
        given = memory_bytes or _refuse_unknown(version)
        return Need(given, cores, disk_bytes=3 * given)
    weights = count_weight_bytes(version, artifact)
    options = parse_options(version.engine, version.spec).model_dump()
    kv_bytes = count_kv_bytes(version.engine, options, artifact, store)
    runtime = version.engine.traits.runtime_bytes
    serving = MARGIN * (weights + runtime) + kv_bytes
    wanted = _round_up(max(serving, _count_preparing(version, artifact)))
    if memory_bytes is not None and memory_bytes < weights + runtime:
        message = (
            f"{memory_bytes / 1e9:.2f} GB do not hold {version.deployment}/{version.label}: weights "
            f"and libraries alone are {(weights + runtime) / 1e9:.2f} GB; give it {wanted / 1e9:.2f} "
            "GB or smaller weights (compress: int4)"
        )
        raise SpecError([Problem("memory", message)], "the options")
    disk = round(artifact.size_bytes * 1.1 + weights * 1.1)
    return Need(memory_bytes or wanted, cores, weights, disk, artifact.description.parameters)


def find_preparing_bytes(version: DeployedVersion, store: Store, memory_bytes: int | None) -> int:
    """The memory in which the model of `version` can be fetched and prepared; `memory_bytes` is what
    the user says. Raises `SpecError` as `find_need` does.
    """
    if memory_bytes is not None or not version.engine.traits.loads_model:
        return memory_bytes or 0
    artifact = find_artifact(version, store)
    if artifact is None:
        return _refuse_unknown(version)
    return _round_up(_count_preparing(version, artifact))


def _count_preparing(version: DeployedVersion, artifact: Artifact) -> float:
    return MARGIN * (artifact.size_bytes + version.engine.traits.runtime_bytes)


def _refuse_unknown(version: DeployedVersion) -> NoReturn:
    model = version.spec.model
    message = (
        f"the size of {model} is not known here: fetch it (thrifty pull {model}), or say how much "
        "memory each container that loads or prepares it gets (--set memory=4GB)"
    )
    raise SpecError([Problem("model", message)])


def find_artifact(version: DeployedVersion, store: Store) -> Artifact | None:
    """The model as the store has it; None if it was never fetched."""
    try:
        known = store.find_requested(version.spec.model)
        return known[1] if known is not None else None
    except ArtifactError:
        return None


def find_scheme(version: DeployedVersion) -> str:
    """The form of its weights; where the machine decides, the largest that it may take."""
    scheme = version.spec.compress.quantize.scheme
    schemes = version.engine.traits.schemes
    if scheme in schemes:
        return scheme
    choices = [name for name in version.engine.traits.auto_schemes if name in schemes]
    return max(choices, key=lambda name: schemes[name].bytes_per_weight, default="none")


def count_weight_bytes(version: DeployedVersion, artifact: Artifact) -> int:
    """The size of its weights in memory."""
    scheme = version.engine.traits.schemes.get(find_scheme(version))
    per_weight = scheme.bytes_per_weight if scheme is not None else 2.0
    return round(artifact.description.parameters * per_weight)


def _round_up(count: float) -> int:
    return -(-round(count) // _STEP) * _STEP
