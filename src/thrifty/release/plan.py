"""The plan of a release: written down before it begins, and not changed afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from thrifty.errors import ControlError, SpecError
from thrifty.spec.judges import RemoteJudge, check_judge
from thrifty.spec.own_file import load_file, parse_data
from thrifty.spec.section import Count, Duration, Number, Section
from thrifty.types import Family

ACCEPTANCE, JUDGED, RATED = "acceptance", "judged", "rated"
GUARDS = "guards"
ERRORS, TTFT, TPOT, COST = "errors", "ttft", "tpot", "cost"
START, SHADOW, BANDIT = "start", "shadow", "bandit"
RATIO_ALPHA = 0.001
"""The chance that the check of the shares stops a release whose shares are as planned."""

Promotion = Literal["promote", "pause"]


class ShadowPlan(Section):
    """The paired shadow: copies of requests to the candidate, judged against what was answered."""

    judge: str | RemoteJudge | None = Field(
        None,
        description="Who compares two answers: a Python function as `module:function`, "
        "`deployment:NAME`, or a mapping of `url`, `model` and `key_env`. Without one the shadow is "
        "skipped.",
    )
    share: Number = Field(1.0, gt=0, le=1, description="The share of requests that are copied.")
    pairs: Count = Field(1500, ge=1, description="The most pairs that are judged.")
    inconclusive: Literal["continue", "stop"] = Field(
        "continue",
        description="What follows when `pairs` were judged without a verdict: go on to the canary, or "
        "end the release as `inconclusive`. Where `judged` is the primary metric it always ends.",
    )

    @field_validator("judge")
    @classmethod
    def _check_judge(cls, value: Any) -> Any:
        return check_judge(value)


class CanaryPlan(Section):
    """What is looked at while the candidate has a share, beside what users say and do."""

    judge: str | RemoteJudge | None = Field(
        None,
        description="Who scores answers of both versions: a Python function as `module:function`, "
        "`deployment:NAME`, or a mapping of `url`, `model` and `key_env`. While it is away the release "
        "is paused, at the share that it has.",
    )

    @field_validator("judge")
    @classmethod
    def _check_judge(cls, value: Any) -> Any:
        return check_judge(value)


class BanditPlan(Section):
    """In place of steps: the candidate's share follows what users accept, by Thompson sampling."""

    control: Number = Field(
        0.2, gt=0, le=0.5,
        description="The share of the conversations that is not moved: half of it is always the "
        "candidate's, half always the others'. It alone decides.",
    )  # fmt: skip
    every: Duration = Field(600.0, ge=1, description="How often the share may change.")
    growth: Number = Field(
        2.0, gt=1, le=10, description="At most so many times the share before, at each change."
    )


class StepPlan(Section):
    """What each step of the canary waits for before the next one."""

    conversations: Count = Field(
        50, ge=1, description="So many conversations with the candidate have been measured."
    )
    time: Duration = Field(60.0, description="So long has it lasted.")


class GuardsPlan(Section):
    """How much worse the candidate may be, by metric; null: the metric is not guarded."""

    acceptance: Number | None = Field(
        0.0, ge=0, lt=1, description="Less of the conversations liked, as a share."
    )
    judged: Number | None = Field(
        0.0, ge=0, lt=1, description="More of the compared answers lost than won, as a share."
    )
    rated: Number | None = Field(
        0.0, ge=0, lt=1, description="A lower score by the canary's judge, from 0 to 1."
    )
    errors: Number | None = Field(
        0.005, ge=0, lt=1, description="More conversations with a failed request, as a share."
    )
    ttft: Number | None = Field(
        0.1, ge=0, description="Longer until the first token, as a part of it."
    )
    tpot: Number | None = Field(0.1, ge=0, description="Longer for each further token.")
    cost: Number | None = Field(0.1, ge=0, description="Dearer by request.")


class BudgetPlan(Section):
    """Where a release ends without a verdict."""

    requests: Count = Field(
        200_000, ge=1, description="Users' requests to the deployment that were measured."
    )
    time: Duration = Field(7 * 86400.0, gt=0, description="The time it runs, pauses left out.")


class OutcomePlan(Section):
    """What is done at each verdict."""

    better: Promotion = Field("promote", description="The candidate is better: promote or pause.")
    not_worse: Promotion = Field(
        "promote",
        description="It is not worse by `margin` or more; or, where guards decide, nothing is worse.",
    )
    worse: Literal["roll_back", "pause"] = Field(
        "roll_back", description="It is worse in some metric: roll back or pause."
    )
    inconclusive: Literal["roll_back", "promote", "pause"] = Field(
        "roll_back", description="The budget is used up without a verdict."
    )


class ReleasePlan(Section):
    """How a version is released."""

    primary: Literal["acceptance", "judged", "rated", "guards"] | None = Field(
        None,
        description="The metric that decides on promotion; or `guards`: promoted after all steps, "
        "once times, cost and scores rule out a loss beyond what is tolerated and `margin`, and no "
        "guard is worse, for versions whose answers nobody judges. "
        "Default: `judged` where "
        "there is a judge, else `acceptance`; for models that answer with numbers `guards`.",
    )
    margin: Number = Field(
        0.05,
        gt=0,
        lt=1,
        description="A version worse by this in the primary metric is not promoted; where guards "
        "decide, none that may be worse by what they tolerate and this.",
    )
    alpha: Number = Field(
        0.01, gt=0, lt=0.5,
        description="The error budget: the chance that any metric calls an equal version worse. Half "
        "is the primary metric's, the guards share the rest.",
    )  # fmt: skip
    shadow: ShadowPlan = Field(default_factory=lambda: ShadowPlan(), description="The first stage.")
    canary: CanaryPlan = Field(
        default_factory=lambda: CanaryPlan(), description="Who judges the canary."
    )
    bandit: BanditPlan | None = Field(
        None, description="The share follows what users accept; `steps` then do not apply."
    )
    steps: tuple[Number, ...] = Field(
        (1, 5, 25, 100), min_length=1, max_length=20,
        description="The candidate's share of the conversations in each step, in percent; the last is "
        "100.",
    )  # fmt: skip
    step: StepPlan = Field(
        default_factory=lambda: StepPlan(), description="What each step waits for."
    )
    settle: Duration = Field(
        600.0, gt=0,
        description="How long after a conversation's first request its feedback counts.",
    )  # fmt: skip
    sticky: Duration = Field(
        3600.0,
        description="A conversation with a request in this time before a step stays on its version.",
    )
    guards: GuardsPlan = Field(
        default_factory=lambda: GuardsPlan(), description="What else the candidate must not worsen."
    )
    budget: BudgetPlan = Field(
        default_factory=lambda: BudgetPlan(), description="Where it ends without a verdict."
    )
    then: OutcomePlan = Field(
        default_factory=lambda: OutcomePlan(), description="What is done at each verdict."
    )

    @model_validator(mode="after")
    def _check(self) -> ReleasePlan:
        rising = all(one < other for one, other in zip(self.steps, self.steps[1:], strict=False))
        if not rising or self.steps[0] <= 0 or self.steps[-1] != 100:
            raise ValueError("'steps' are percentages that rise and end with 100")
        if self.primary == JUDGED and self.shadow.judge is None:
            raise ValueError("the primary metric 'judged' needs 'shadow.judge'")
        if self.primary == RATED and self.canary.judge is None:
            raise ValueError("the primary metric 'rated' needs 'canary.judge'")
        if self.primary == GUARDS and len(self.steps) == 1 and self.bandit is None:
            raise ValueError("the guards see nothing in one step to 100 percent; add a smaller one")
        if self.primary == GUARDS and not self._guarded:
            raise ValueError("'primary: guards' needs a guard, and all are null; give one a bound")
        if self.bandit is not None:
            if "steps" in self.model_fields_set:
                raise ValueError("a plan has 'steps' or 'bandit', not both")
            if self.primary in (JUDGED, GUARDS):
                raise ValueError(
                    "a bandit decides by its control slice; set 'primary' to acceptance or rated"
                )
        elif len(self.steps) == 1 and self.primary_metric in (ACCEPTANCE, RATED):
            raise ValueError(
                f"{self.primary_metric!r} cannot be measured in one step to 100 percent; add a "
                "smaller one"
            )
        return self

    @property
    def primary_metric(self) -> str:
        """The metric that has half of the error budget; it decides on promotion, unless the guards
        do together: then it is that of failures, or the first where failures are not guarded.
        """
        if self.primary == GUARDS:
            return ERRORS if ERRORS in self._guarded else next(iter(self._guarded))
        judged = self.shadow.judge is not None and self.bandit is None
        return self.primary or (JUDGED if judged else ACCEPTANCE)

    @property
    def stages(self) -> list[str]:
        """The names of the stages, in order."""
        shadow = [SHADOW] if self.shadow.judge is not None else []
        if self.bandit is not None:
            return [START, *shadow, BANDIT, "100%"]
        return [START, *shadow, *(f"{step:g}%" for step in self.steps)]

    def share_of(self, stage: int) -> float:
        """The candidate's share of the conversations in a stage, from 0 to 1; of a bandit that with
        which it begins.
        """
        shares = [step / 100 for step in self.steps]
        if self.bandit is not None:
            shares = [self.bandit.control / 2, 1.0]
        place = stage - (len(self.stages) - len(shares))
        return shares[place] if place >= 0 else 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that are tested, with how much worse the candidate may be; the primary one
        is first.
        """
        tolerances, primary = self._guarded, self.primary_metric
        return {primary: tolerances.pop(primary, 0.0), **tolerances}

    @property
    def _guarded(self) -> dict[str, float]:
        """The guards that can be measured, with how much worse the candidate may be."""
        unjudged = {JUDGED: self.shadow.judge is None, RATED: self.canary.judge is None}
        return {
            name: value
            for name, value in self.guards.model_dump().items()
            if value is not None and not unjudged.get(name)
        }

    def suit(self, family: str) -> ReleasePlan:
        """This plan for models of a family: what embeddings and rankings are worth, nobody says by
        the answer, so that the guards decide unless the plan says otherwise. Raises `ControlError`
        where there are none.
        """
        judged = self.shadow.judge is not None or self.canary.judge is not None
        if (
            family == Family.DECODER
            or self.primary is not None
            or judged
            or self.bandit is not None
        ):
            return self
        return parse_plan({**dump_plan(self), "primary": GUARDS})


def parse_plan(value: Any) -> ReleasePlan:
    """The plan that a mapping describes. Raises `ControlError` with every fault."""
    try:
        return parse_data(ReleasePlan, {} if value is None else value, "the plan of the release")
    except SpecError as error:
        raise ControlError(str(error)) from None


def load_plan(path: Path | None) -> ReleasePlan:
    """The plan in a YAML file; without one, the default. Raises `SpecError` with every fault and its
    line.
    """
    return ReleasePlan() if path is None else load_file(ReleasePlan, path, "the plan")


def dump_plan(plan: ReleasePlan) -> dict[str, Any]:
    """The plan as JSON keeps it; `parse_plan` reads it."""
    made: dict[str, Any] = plan.model_dump(
        mode="json", exclude={"steps"} if plan.bandit is not None else None
    )
    return made
