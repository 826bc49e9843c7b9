"""How long each kind of data is kept."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from thrifty.spec.section import Duration, Section, expand_shorthand

DAY_S = 86400.0


class KeepSpec(Section):
    """How long each kind of record is kept. What is older is deleted."""

    requests: Duration = Field(30 * DAY_S, gt=0, description="Rows of the request log.")
    texts: Duration | None = Field(
        None,
        gt=0,
        description="Prompts and answers, which never outlive their rows. Default: as `requests`.",
    )
    feedback: Duration | None = Field(
        None,
        gt=0,
        description="Feedback, from its newest value on. Default: as `requests`.",
    )
    minutes: Duration = Field(
        2 * DAY_S, ge=DAY_S / 4, description="Sums of requests by minute; at least 6h."
    )
    hours: Duration = Field(90 * DAY_S, ge=2 * DAY_S, description="Sums by hour; at least 2d.")
    days: Duration = Field(
        1825 * DAY_S,
        ge=60 * DAY_S,
        description="Sums by day, and hours of replicas, from which costs are worked out; at least 60d.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_duration(cls, value: Any) -> Any:
        return expand_shorthand("record.keep", value)

    @model_validator(mode="after")
    def _check_order(self) -> KeepSpec:
        if self.texts is not None and self.texts > self.requests:
            raise ValueError("has 'texts' longer than 'requests'; texts go with their rows")
        if not self.minutes <= self.hours <= self.days:
            raise ValueError("must not keep 'minutes' longer than 'hours', or these than 'days'")
        return self
