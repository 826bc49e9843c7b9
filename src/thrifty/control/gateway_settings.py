"""The gateway workers' settings as plain data: what `DesiredService.gateway` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.home import Home
from thrifty.spec import Spec
from thrifty.spec.models import ExactCacheSpec, TlsSpec
from thrifty.spec.observe import OtlpSpec

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DATABASE_VARIABLE = "THRIFTY_DATABASE_URL"
_REDIS_VARIABLE = "THRIFTY_REDIS_URL"
_SECRET_VARIABLE = "THRIFTY_ID_SECRET"  # noqa: S105
_FIXED = ("host", "port")
"""What a running gateway cannot change."""


@dataclass(frozen=True)
class WorkerSettings:
    """What gateway workers are started with."""

    settings: Mapping[str, Any]
    """`GatewaySettings` as JSON, but for what differs from worker to worker."""
    environment: Mapping[str, str]
    """What a command line must not show."""

    @property
    def workers(self) -> int:
        """How many there are."""
        return int(self.settings["workers"])

    @property
    def drain_timeout_s(self) -> float:
        """How long running requests may go on when a worker ends."""
        return float(self.settings["drain_timeout_s"])


def describe_gateway(spec: Spec) -> dict[str, Any]:
    """What a spec says of the gateway, as values of JSON. Nothing in it depends on the machine."""
    gateway = spec.gateway
    return {
        "host": gateway.host,
        "port": gateway.port,
        "workers": gateway.workers,
        "redis_url": spec.redis,
        "redis_timeout_s": spec.redis_timeout,
        "max_body_bytes": spec.limits.max_body,
        "cache_bytes": spec.cache.exact.max_bytes,
        "cache_shared": _shared_cache(spec.cache.exact),
        "read_timeout_s": gateway.read_timeout,
        "write_timeout_s": gateway.write_timeout,
        "drain_timeout_s": gateway.drain_timeout,
        "record_requests": spec.record.requests,
        "record_prompts": spec.record.prompts,
        "record_redact": spec.record.redact,
        "record_names": spec.record.names_model if spec.record.names else "",
        "record_keep_s": spec.record.keep.requests,
        "record_keep_texts_s": spec.record.keep.texts,
        "record_keep_feedback_s": spec.record.keep.feedback,
        "record_max_rows": spec.record.max_rows,
        "feedback": {
            "tokens": spec.feedback.tokens,
            "token_ttl_s": spec.feedback.token_ttl,
            "per_user": spec.feedback.per_user,
            "per_tenant": spec.feedback.per_tenant,
        },
        "observe": {
            "tenants": spec.observe.tenants,
            "otlp": _describe_otlp(spec.observe.otlp),
        },
        "cors": list(gateway.cors),
        "hosts": list(gateway.hosts),
        "tls": _describe_tls(gateway.tls),
        "oidc": gateway.oidc.describe(),
        "require_keys": gateway.host not in LOOPBACK and not gateway.allow_no_keys,
        "batches": {
            "max_file_bytes": spec.batches.max_file,
            "max_lines": spec.batches.max_lines,
            "max_active": spec.batches.max_active,
            "keep_s": spec.batches.keep,
            "governor": {
                "reserve": spec.batches.reserve,
                "displace": spec.batches.displace,
                "settle_s": spec.batches.settle,
            },
        },
    }


def make_worker_settings(
    gateway: Mapping[str, Any],
    home: Home,
    *,
    host: str,
    port: int,
    database_url: str,
    id_secret: str,
) -> WorkerSettings:
    """What workers of this home are started with, on the address that they have already."""
    settings = {name: value for name, value in gateway.items() if name not in _FIXED}
    redis_url = settings.pop("redis_url", None)
    batches = {**(settings.get("batches") or {}), "folder": str(home.files)}
    settings |= {
        "host": host,
        "port": port,
        "batches": batches,
        "home": str(home.root),
        "recorder_path": str(home.recorder_socket),
        "database_url_env": _DATABASE_VARIABLE,
        "redis_url_env": _REDIS_VARIABLE,
    }
    environment = {
        _DATABASE_VARIABLE: database_url,
        _REDIS_VARIABLE: redis_url or "",
        _SECRET_VARIABLE: id_secret,
    }
    return WorkerSettings(settings, environment)


def find_unchangeable(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two states of the gateway and needs a new start of the service. A port
    of 0 is any port.
    """
    return [
        name
        for name in _FIXED
        if new.get(name) != old.get(name) and not (name == "port" and not new.get(name))
    ]


def make_url(host: str, port: int, *, tls: bool = False) -> str:
    """Where clients on this machine reach a gateway that listens on `host`."""
    scheme = "https" if tls else "http"
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)  # noqa: S104
    return f"{scheme}://{reachable}:{port}"


def _describe_tls(tls: TlsSpec) -> dict[str, str] | None:
    """The files, wherever their readers are started."""
    if tls.cert is None or tls.key is None:
        return None
    return {"cert": str(Path(tls.cert).absolute()), "key": str(Path(tls.key).absolute())}


def _describe_otlp(otlp: OtlpSpec) -> dict[str, Any] | None:
    """What is sent to a collector, if there is one."""
    if otlp.endpoint is None:
        return None
    return {
        "endpoint": otlp.endpoint,
        "headers_env": otlp.headers_env,
        "traces": otlp.traces,
        "sample": otlp.sample,
        "slow_s": otlp.slow,
        "metrics": otlp.metrics,
        "interval_s": otlp.interval,
    }


def _shared_cache(exact: ExactCacheSpec) -> dict[str, float] | None:
    """How gateway workers share answers through Redis, if they are to."""
    if not exact.shared:
        return None
    return {
        "timeout_s": exact.shared_timeout,
        "wait_s": exact.share_wait,
        "stream_wait_s": exact.share_wait_stream,
        "max_entry_bytes": exact.shared_max_entry,
    }
