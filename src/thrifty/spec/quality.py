"""The keys of the spec about the quality of answers."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from thrifty.spec.judges import RemoteJudge, check_judge
from thrifty.spec.section import Count, Duration, Number, Section


class QualitySpec(Section):
    """Canary questions, which every version is asked now and then, and checks of recorded answers."""

    questions: str | None = Field(
        None,
        min_length=1,
        description="A file of questions (JSON lines of `question` and `answers`) on the service's "
        "machine, or a set of `thrifty data list` that has answers. Default: "
        "nothing is asked.",
    )
    every: Duration = Field(600.0, ge=1, description="How often each version is asked all of them.")
    count: Count = Field(50, ge=1, le=1000, description="The first so many are asked.")
    answers: Number = Field(
        50.0,
        ge=0,
        le=10_000,
        description="The most recorded answers that are checked in a second; of more, those of a share "
        "of the conversations. 0: none.",
    )
    judge: str | RemoteJudge | None = Field(
        None,
        description="Who scores a share of the recorded answers: a Python function as "
        "`module:function`, `deployment:NAME`, or a mapping of `url`, `model` and `key_env`. It needs "
        "`record.prompts`.",
    )
    judge_share: Number = Field(
        0.02,
        gt=0,
        le=1,
        description="The share of the conversations' answers that the judge scores.",
    )
    judge_per_hour: Count = Field(
        120, ge=1, le=100_000, description="The most answers that the judge scores in an hour."
    )

    encoder: str | None = Field(
        None,
        min_length=1,
        description="The name of a deployment of this service, an encoder, that embeds some questions "
        "and answers a day, so that drift of their meaning is told. It needs `record.prompts`.",
    )

    @field_validator("judge")
    @classmethod
    def _check_judge(cls, value: Any) -> Any:
        return check_judge(value)
