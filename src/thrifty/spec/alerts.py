"""What is an alert, and who is told."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from thrifty.spec.observe import Variable
from thrifty.spec.section import Count, Duration, Number, Section

_SERVER = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")
_ADDRESS = re.compile(r"[^\s@,;<>]+@[^\s@,;<>]+")


class AlertTargetSpec(Section):
    """Who is told. Secrets are in environment variables, which are named here."""

    kind: Literal["webhook", "slack", "mail", "log"] = Field(
        "log",
        description="`webhook` posts JSON, `slack` Slack's format; `mail` sends by SMTP; `log` writes "
        "to the controller's log.",
    )
    severity: Literal["ticket", "page"] = Field(
        "ticket", description="`page`: only alerts that should wake somebody."
    )
    url_env: Variable | None = Field(
        None, description="Of `webhook` and `slack`: the variable that holds the URL."
    )
    server: str | None = Field(None, description="Of `mail`: the server, as `host` or `host:port`.")
    tls: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="Of `mail`: how the connection is encrypted."
    )
    sender: str | None = Field(None, description="Of `mail`: the address in `From`.")
    to: tuple[str, ...] = Field((), description="Of `mail`: the addresses that get it.")
    user_env: Variable | None = Field(
        None, description="Of `mail`: the variable that holds the user, if the server wants one."
    )
    password_env: Variable | None = Field(
        None, description="Of `mail`: the variable that holds the user's password."
    )

    @field_validator("to", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @model_validator(mode="after")
    def _check_kind(self) -> AlertTargetSpec:
        needs_url = self.kind in ("webhook", "slack")
        if needs_url != (self.url_env is not None):
            verb = "needs" if needs_url else "has no"
            raise ValueError(f"a target of the kind {self.kind!r} {verb} 'url_env'")
        mail = (self.server, self.sender, self.to or None)
        if self.kind != "mail":
            if any(one is not None for one in (*mail, self.user_env, self.password_env)):
                raise ValueError(
                    f"a target of the kind {self.kind!r} has no server, addresses or user"
                )
            return self
        if None in mail:
            raise ValueError("a target of the kind 'mail' needs 'server', 'sender' and 'to'")
        if (self.user_env is None) != (self.password_env is None):
            raise ValueError("needs both 'user_env' and 'password_env', or neither")
        if self.server is not None and not _SERVER.fullmatch(self.server):
            raise ValueError(f"'server' is {self.server!r}; write a host, and perhaps a port")
        for address in (self.sender, *self.to):
            if address is not None and not _ADDRESS.fullmatch(address):
                raise ValueError(f"{address!r} is not the address of a mailbox")
        return self


class AlertsSpec(Section):
    """What is an alert, and who is told."""

    availability: Number = Field(
        0.99,
        ge=0.94,
        lt=1,
        description="The share of requests that must not fail. Alerts come when this budget is spent "
        "too fast, in two windows at once. Latencies are judged by `slo`, at 95%.",
    )
    minimum: Count = Field(
        100, ge=1, description="No alert on fewer requests than this in the long window."
    )
    feedback_drop: Number | None = Field(
        0.1,
        gt=0,
        le=1,
        description="By how much the share of thumbs up of a version's last day must be below that of "
        "its deployment's week before. Default: 10 points; `null`: never an alert.",
    )
    quality_drop: Number | None = Field(
        0.03,
        gt=0,
        le=1,
        description="By how much the share of good answers of a version must be below that of the "
        "deployment's other versions, in a fault, in what users did or by the judge. Canary questions "
        "are judged by themselves. Default: 3 points; `null`: never an alert.",
    )
    drift: bool = Field(
        True,
        description="Whether a change of what is asked, or of how a version answers, is an alert.",
    )
    budget: Number | None = Field(
        0.8,
        gt=0,
        le=1,
        description="The share of a budget (of a key, a deployment, the machine) whose spending is an "
        "alert; so is a forecast above the budget. `null`: never.",
    )
    crash_loops: bool = Field(True, description="Whether replicas in a crash loop are an alert.")
    repeat: Duration = Field(
        4 * 3600.0, ge=60, description="How often an alert that stays open is told again."
    )
    to: tuple[AlertTargetSpec, ...] | None = Field(
        None,
        description="Who is told: a list of mappings with the keys below, `[]` for nobody. Default: "
        "the controller's log.",
    )

    @field_validator("to", mode="before")
    @classmethod
    def _from_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @property
    def targets(self) -> tuple[AlertTargetSpec, ...]:
        """Who is told."""
        return (AlertTargetSpec(),) if self.to is None else self.to
