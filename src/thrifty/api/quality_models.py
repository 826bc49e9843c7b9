"""What the view of quality gives. Every `low` and `high` are the ends of a confidence sequence, which
holds the value at 95% however often one looks.
"""

from __future__ import annotations

from pydantic import Field

from thrifty.api.models import Answer
from thrifty.api.view_models import Series


class CanaryFigures(Answer):
    """One version's answers to canary questions."""

    deployment: str
    version: str
    revision: str
    questions: str = Field(description="A checksum of the questions.")
    asked: int
    rounds: int
    right: int
    share: float | None
    low: float
    high: float
    lost: int = Field(description="Questions that were right at first and became wrong.")
    gained: int
    change: str
    faults: dict[str, int]
    first_s: float
    last_s: float
    failed: str


class ShareFigures(Answer):
    """How often something was found in a version's answers."""

    name: str
    count: int = Field(description="Answers that count: one of a conversation and day.")
    found: int
    share: float | None
    low: float
    high: float
    all_count: int = Field(description="All checked answers to which it applies.")
    all_found: int


class SessionFigures(Answer):
    """How users talk with a version. A pause of half an hour ends a session."""

    count: int
    turns: float | None = Field(description="Requests of a session, in the mean.")
    low: float | None
    high: float | None
    minutes: float | None
    returned: int = Field(description="Sessions of conversations that had one before.")


class AnswerFigures(Answer):
    """What was found in one version's answers since it has been checked."""

    deployment: str
    version: str
    answers: int = Field(description="Answers in the log since then.")
    checked: int
    since_s: int
    faults: list[ShareFigures]
    engagement: list[ShareFigures]
    sessions: SessionFigures


class JudgedFigures(Answer):
    """What a judge says of one version, corrected by people."""

    deployment: str
    version: str
    judge: str
    scored: int
    unusable: int = Field(description="Answers of which the judge said nothing usable.")
    raw: float | None
    labels: int = Field(description="Answers that chance chose, and that people reviewed.")
    mean: float | None
    low: float
    high: float
    corrected: bool = Field(description="Whether there were labels enough to correct the mean.")
    kappa: float | None = Field(description="The judge's agreement with people: Cohen's kappa.")
    kappa_low: float
    kappa_high: float
    agreement: float | None
    compared: int


class DriftFigures(Answer):
    """One figure of one day, compared with up to seven days before it."""

    at_s: int
    deployment: str
    version: str = Field(description="Empty: what the deployment was asked.")
    name: str
    before: int
    now: int
    effect: float
    p_value: float = Field(description="Adjusted for all figures of that look.")
    drifted: bool


class Course(Answer):
    """Shares by version and day."""

    times: list[int]
    series: list[Series]


class Quality(Answer):
    """What is known of the quality of answers."""

    canaries: list[CanaryFigures]
    versions: list[AnswerFigures]
    judged: list[JudgedFigures]
    drift: list[DriftFigures]
    course: Course
