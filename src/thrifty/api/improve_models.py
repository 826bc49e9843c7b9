"""What the views of the loop give: its runs with their steps, and when the next one begins."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thrifty.api.models import Answer


class ImproveStepModel(Answer):
    """One step of a run."""

    step: str = Field(description="`collect`, `train`, `compress`, `gate`, `approve` or `release`.")
    state: str = Field(description="`running`, `failed` or `done`.")
    tries: int
    began_s: float
    ended_s: float | None
    outputs: dict[str, Any] = Field(description="What it came to.")
    error: str


class GateSlice(Answer):
    """One metric on some items, as the gate compared them."""

    metric: str
    name: str
    count: int
    candidate: float
    against: float
    base: float | None
    difference: float
    low: float
    high: float
    outcome: str
    failed: bool


class ImproveRunModel(Answer):
    """One turn of the loop."""

    id: int
    deployment: str
    state: str = Field(description="As `thrifty improve status` has it.")
    began_by: str
    who: str
    created_s: float
    updated_s: float
    message: str
    release: int | None = Field(None, description="The release of its version.")
    steps: list[ImproveStepModel]


class ImproveRunDetail(ImproveRunModel):
    """One turn with the slices of its gate, those that failed first."""

    slices: list[GateSlice]


class ImproveSchedule(Answer):
    """What begins runs of a deployment by itself."""

    deployment: str
    every_s: float | None
    feedback: int | None
    drift: bool
    teacher: bool
    new_feedback: int = Field(description="Judgements since the last run began, up to a bound.")


class ImproveRuns(Answer):
    """The newest runs, and what begins the next ones."""

    runs: list[ImproveRunModel]
    schedules: list[ImproveSchedule]
