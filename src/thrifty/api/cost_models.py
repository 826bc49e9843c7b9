"""What `GET /api/v1/cost` takes and gives, which `thrifty cost --json` prints, too."""

from __future__ import annotations

from pydantic import Field

from thrifty.api.models import MAX_TIME_S, Answer, Request


class CostQuery(Request):
    """Which costs are wanted."""

    by: str = Field("version", description="`version`, `deployment`, `tenant` or `day`.")
    from_s: int | None = Field(
        None,
        alias="from",
        ge=0,
        le=MAX_TIME_S,
        description="Seconds since 1970, brought to the start of the hour (of the day, for more than "
        "45 days). Default: 30 days before `to`.",
    )
    to_s: int | None = Field(
        None, alias="to", ge=0, le=MAX_TIME_S, description="The end. Default: now."
    )
    price_per_hour: float | None = Field(
        None,
        ge=0,
        le=1e9,
        allow_inf_nan=False,
        description="What the machine costs an hour, for the time when no spec said it.",
    )


class CostLine(Answer):
    """The cost of one version, deployment, tenant or day. Money is in the currency that prices are
    in; null: it cannot be said.
    """

    deployment: str | None = None
    version: str | None = None
    tenant: str | None = None
    of: str | None = Field(
        None,
        description="By tenant: `tenant`, or `no tenant` for idle time, shadows and measurements.",
    )
    day: str | None = Field(None, description="As 2026-11-30, UTC.")
    cost: float = Field(description="The sum of the four parts below.")
    requests_cost: float = Field(description="The machine's time at work for users.")
    others_cost: float = Field(description="Its time at work for shadows and measurements.")
    idle_cost: float = Field(description="The time in which replicas were held and did nothing.")
    tokens_cost: float = Field(description="Servers of others, by the prices of tokens.")
    charged: float = Field(description="What generated tokens cost by `prices` of the spec.")
    requests: int
    answers: int = Field(description="Requests that did not fail.")
    tokens_in: int = Field(description="Tokens of prompts, cache hits included.")
    tokens_out: int = Field(description="Tokens of answers, cache hits included.")
    up: int
    down: int
    accepted_share: float | None = Field(description="Thumbs up of all thumbs.")
    accepted_low: float | None = Field(description="Its 95% interval, by Wilson.")
    accepted_high: float | None
    per_request: float | None = Field(description="`cost` by request.")
    per_million_tokens: float | None = Field(description="`cost` by million tokens of answers.")
    per_accepted: float | None = Field(
        description="`cost` by accepted answer: answers times the accepted share."
    )
    per_accepted_low: float | None
    per_accepted_high: float | None
    held_s: float = Field(description="How long replicas were held, added up.")
    worked_s: float = Field(description="How much of that they worked.")
    machine_s: float = Field(description="How much time of the whole machine they held.")
    unpriced_s: float = Field(description="How much of that had no price.")


class SavingModel(Answer):
    """What a measure saved a version."""

    what: str = Field(description="`cache`, `batching`, `compression` or `scaling to zero`.")
    deployment: str
    version: str
    saved: float | None
    saved_s: float | None = Field(description="Time of a replica, in seconds.")
    baseline: str = Field(description="What it is compared to, or why nothing can be said.")


class BudgetModel(Answer):
    """A month (UTC) so far, and its forecast with a 95% interval."""

    of: str = Field(description="`machine`, `deployment`, or `tenant` (by the prices of tokens).")
    name: str
    spent: float
    budget: float | None
    forecast: float | None
    forecast_low: float | None
    forecast_high: float | None
    basis: str = Field(description="What the forecast rests on.")


class CostAnswer(Answer):
    """What a time cost, with parts that add up."""

    by: str
    from_s: int = Field(serialization_alias="from", validation_alias="from")
    to_s: float = Field(serialization_alias="to", validation_alias="to")
    priced: bool = Field(description="Whether all of the time had a price.")
    bases: list[str] = Field(description="Where prices are from.")
    how_to_price: str | None = Field(description="What to do where there is none.")
    lines: list[CostLine]
    total: CostLine
    unheld_cost: float = Field(description="What no replica held of the machine.")
    unheld_s: float
    machine_cost: float = Field(description="The machine's cost: all lines and what is not held.")
    savings: list[SavingModel]
    budgets: list[BudgetModel]
