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


class RecorderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the recorder is started with: a part of what gateway workers are. Times in seconds."""

    database_url_env: str = "THRIFTY_DATABASE_URL"
    """The variable that holds the URL; its password would be visible on a command line."""
    id_secret_env: str = "THRIFTY_ID_SECRET"  # noqa: S105
    """The variable that holds the key, in hex, that signs response ids and makes pseudonyms."""
    record_requests: bool = True
    record_prompts: bool = False
    record_redact: bool = True
    record_names: str = ""
    """The model that finds names and addresses to redact; empty if they stay."""
    record_keep_s: float = 30 * 86400.0
    record_keep_texts_s: float | None = None
    """None: as long as rows; so for feedback."""
    record_keep_feedback_s: float | None = None
    record_max_rows: int = 10_000_000
    observe: ObserveSettings = ObserveSettings()

    @property
    def needs_recorder(self) -> bool:
        """Whether there is anything to record."""
        return self.record_requests or self.observe.otlp is not None
