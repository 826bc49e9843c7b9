"""What is watched, and who is told, as plain data: what the desired state keeps."""

from __future__ import annotations

import msgspec


class Target(msgspec.Struct, frozen=True):
    """Who is told of alerts. Secrets are in environment variables, which are named here."""

    kind: str
    """`webhook`, `slack`, `mail` or `log`."""
    severity: str = "ticket"
    """`page`: only of alerts that should wake somebody."""
    url_env: str | None = None
    server: str | None = None
    """`host` or `host:port`."""
    tls: str = "starttls"
    """`starttls`, `tls` or `none`."""
    sender: str | None = None
    to: tuple[str, ...] = ()
    user_env: str | None = None
    password_env: str | None = None

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return ":".join((self.kind, self.url_env or self.server or "", *self.to)).rstrip(":")


class AlertSettings(msgspec.Struct, frozen=True):
    """The alerts of a service."""

    availability: float = 0.99
    """The share of requests that must not fail."""
    minimum: int = 100
    """The fewest requests in the long window of a burn rate."""
    feedback_drop: float | None = 0.1
    """The drop of the share of thumbs up that is an alert; None: none is."""
    quality_drop: float | None = 0.03
    """By how much a version's answers must be worse than others' to be an alert; None: never."""
    drift: bool = True
    budget: float | None = 0.8
    """The share of a budget whose spending is an alert; None: none is."""
    crash_loops: bool = True
    repeat_s: float = 4 * 3600.0
    """How often an open alert is told again."""
    targets: tuple[Target, ...] = (Target("log"),)


class Slo(msgspec.Struct, frozen=True):
    """The latencies of one version that 95 of 100 requests should stay within; None: no
    objective.
    """

    deployment: str
    version: str
    ttft_s: float | None = None
    tpot_s: float | None = None
