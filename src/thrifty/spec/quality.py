"""The keys of the spec about canary questions."""

from __future__ import annotations

from pydantic import Field

from thrifty.spec.section import Count, Duration, Section


class QualitySpec(Section):
    """Canary questions: questions with known answers that every version is asked now and then."""

    questions: str | None = Field(
        None,
        min_length=1,
        description="A file of questions (JSON lines of `question` and `answers`) on the service's "
        "machine, or a set of `thrifty data list` that has answers. Default: "
        "nothing is asked.",
    )
    every: Duration = Field(600.0, ge=1, description="How often each version is asked all of them.")
    count: Count = Field(50, ge=1, le=1000, description="The first so many are asked.")
