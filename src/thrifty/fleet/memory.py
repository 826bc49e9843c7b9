"""How much memory a replica on another machine is given, where nobody says."""

from __future__ import annotations

from thrifty.fleet.base import ReplicaSet

MIB = 1 << 20
DEFAULT_KV_BYTES = 256 * MIB
NO_MODEL_BYTES = 512 * MIB
_STEP_BYTES = 128 * MIB


def estimate_memory(replica_set: ReplicaSet, asked_bytes: int | None, model_bytes: int) -> int:
    """What was asked for, or enough for a model of `model_bytes` (0: none is loaded), in bytes."""
    wanted = replica_set.memory_limit_bytes or asked_bytes
    if wanted:
        return wanted
    if not model_bytes:
        return NO_MODEL_BYTES
    cache = replica_set.served.options.get("kv_cache")
    cache_bytes = cache if isinstance(cache, int) and cache > 0 else DEFAULT_KV_BYTES
    runtime = replica_set.engine.traits.runtime_bytes
    return -(-round(1.25 * (model_bytes + runtime) + cache_bytes) // _STEP_BYTES) * _STEP_BYTES
