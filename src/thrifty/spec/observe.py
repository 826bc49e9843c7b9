"""What the service shows of its work to others' tools."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from thrifty.spec.section import Count, Duration, Number, Section

Variable = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
"""The name of an environment variable. Secrets stand there and never in a spec."""


def check_url(value: str | None) -> str | None:
    """A URL of a server, without credentials. Raises `ValueError`."""
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is not a URL; write one such as 'http://localhost:4318'")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must be a plain URL: secrets belong into the environment (see 'headers_env')"
        )
    _ = parts.port  # raises where it is no number
    return value.rstrip("/")


class OtlpSpec(Section):
    """Traces and metrics for an OpenTelemetry collector."""

    endpoint: str | None = Field(
        None,
        description="The collector's base URL for OTLP over HTTP, such as `http://localhost:4318`; "
        "`/v1/traces` and `/v1/metrics` are below it. Default: nothing is sent. Needs "
        "`pip install 'thrifty[otel]'`.",
    )
    headers_env: Variable | None = Field(
        None,
        description="The environment variable that holds headers to send, as "
        "`name=value,other=value`.",
    )
    traces: bool = Field(True, description="Send the traces of requests.")
    sample: Number = Field(
        0.05,
        ge=0,
        le=1,
        description="The share of requests whose traces are kept whatever becomes of them. Those "
        "that fail, miss the `slo` or are slow are kept too, up to 100 a second.",
    )
    slow: Duration = Field(
        10.0, gt=0, description="A request whose answer begins after so long counts as slow."
    )
    metrics: bool = Field(True, description="Send the metrics that `/metrics` shows.")
    interval: Duration = Field(15.0, ge=1, description="How often metrics are sent.")

    _check_endpoint = field_validator("endpoint")(check_url)


class ObserveSpec(Section):
    """What the service shows of its work."""

    tenants: Count = Field(
        50,
        le=10_000,
        description="How many tenants have metrics of their own, in each gateway worker: the first "
        "ones that call. Others count together as `other`. 0: none has.",
    )
    otlp: OtlpSpec = Field(
        default_factory=lambda: OtlpSpec(), description="Traces and metrics by OTLP."
    )
