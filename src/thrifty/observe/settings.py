"""What a gateway worker exports, as plain data."""

from __future__ import annotations

import msgspec

from thrifty.observe.request_metrics import MAX_TENANTS


class OtlpSettings(msgspec.Struct, frozen=True):
    """Where traces and metrics go by OTLP. Times are in seconds."""

    endpoint: str
    """The collector's base URL; `/v1/traces` and `/v1/metrics` are below it."""
    headers_env: str | None = None
    """The environment variable that holds headers, such as one with a key."""
    traces: bool = True
    sample: float = 0.05
    """The share of requests whose traces are kept whatever becomes of them."""
    slow_s: float = 10.0
    """A request that begins to be answered this late is kept, too."""
    metrics: bool = True
    interval_s: float = 15.0
    """How often metrics are sent."""


class ObserveSettings(msgspec.Struct, frozen=True):
    """What a worker shows of its work."""

    tenants: int = MAX_TENANTS
    """How many tenants have series of their own."""
    otlp: OtlpSettings | None = None
    """None sends nothing."""
