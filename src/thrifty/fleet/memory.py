"""How much memory a replica on another machine is given, where nobody says."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.engines.base import DEFAULT_KV_BYTES
from thrifty.fleet.base import ReplicaSet

MIB = 1 << 20
NO_MODEL_BYTES = 512 * MIB
_STEP_BYTES = 128 * MIB


@dataclass(frozen=True)
class ModelSize:
    """What a copy of a model takes of memory."""

    weights_bytes: int = 0
    """0: none is loaded."""
    kv_bytes: int = DEFAULT_KV_BYTES


def estimate_memory(replica_set: ReplicaSet, asked_bytes: int | None, size: ModelSize) -> int:
    """What was asked for, or enough for a model of this size, in bytes."""
    wanted = replica_set.memory_limit_bytes or asked_bytes
    if wanted:
        return wanted
    if not size.weights_bytes:
        return NO_MODEL_BYTES
    runtime = replica_set.engine.traits.runtime_bytes
    wanted = round(1.25 * (size.weights_bytes + runtime) + size.kv_bytes)
    return -(-wanted // _STEP_BYTES) * _STEP_BYTES
