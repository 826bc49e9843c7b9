"""What gateway workers are told of the spec, as plain data.

Paths, ports that were chosen and URLs with passwords are added by whoever starts the workers.
"""

from __future__ import annotations

from typing import Any

from thrifty.spec import ExactCacheSpec, LoadedSpec
from thrifty.spec.models import BatchesSpec

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def describe_gateway(loaded: LoadedSpec) -> dict[str, Any]:
    """The settings of `DesiredService.gateway`. What a deployment says of the gateway's memory and
    limits holds as the first one says it.
    """
    spec = loaded.spec
    first = loaded.each()[0].spec
    gateway = spec.gateway
    return {
        "host": gateway.host,
        "port": gateway.port,
        "workers": gateway.workers,
        "allow_no_keys": gateway.allow_no_keys,
        "require_keys": gateway.host not in LOOPBACK and not gateway.allow_no_keys,
        "redis_timeout_s": spec.redis_timeout,
        "max_body_bytes": first.limits.max_body,
        "cache_bytes": first.cache.exact.max_bytes,
        "cache_shared": _describe_shared_cache(first.cache.exact),
        "read_timeout_s": gateway.read_timeout,
        "write_timeout_s": gateway.write_timeout,
        "drain_timeout_s": gateway.drain_timeout,
        "record_requests": spec.record.requests,
        "record_prompts": spec.record.prompts,
        "record_keep_s": spec.record.keep,
        "record_max_rows": spec.record.max_rows,
        "batches": _describe_batches(spec.batches),
    }


def _describe_shared_cache(exact: ExactCacheSpec) -> dict[str, float] | None:
    """How gateway workers share answers through Redis, if they are to."""
    if not exact.shared:
        return None
    return {
        "timeout_s": exact.shared_timeout,
        "wait_s": exact.share_wait,
        "stream_wait_s": exact.share_wait_stream,
        "max_entry_bytes": exact.shared_max_entry,
    }


def _describe_batches(batches: BatchesSpec) -> dict[str, Any]:
    return {
        "max_file_bytes": batches.max_file,
        "max_lines": batches.max_lines,
        "max_active": batches.max_active,
        "keep_s": batches.keep,
        "governor": {
            "reserve": batches.reserve,
            "displace": batches.displace,
            "settle_s": batches.settle,
        },
    }
