"""What every step of a turn of the loop works with: service, models, settings, run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from thrifty.artifacts import NamedVersion, Store
from thrifty.artifacts.lineage import walk_lineage
from thrifty.control.applied import read_applied
from thrifty.control.candidate import write_spec
from thrifty.control.checks import NO_LOOP
from thrifty.db import Database
from thrifty.db.desired import Desired, read_desired
from thrifty.db.desired_state import DesiredDeployment, DesiredVersion
from thrifty.db.improve import ImproveRun, read_run, read_runs
from thrifty.engines.machine import Machine
from thrifty.errors import ControlError, ThriftyError
from thrifty.home import Home
from thrifty.spec import parse_spec
from thrifty.spec.faults import suggest
from thrifty.spec.improve import ImproveSpec
from thrifty.types import Family, OnProgress, ignore_progress

MADE_BY_ENGINES = ("openvino", "llamacpp", "checkpoint")
MADE_BY_PIPELINES = (*MADE_BY_ENGINES, "prune", "distill", "llm-compressor", "gguf")
"""Steps of a lineage that are taken again for the next version, by any spec and by one with a
pipeline."""

MOST_RUNS = 1000


class ImproveError(ThriftyError):
    """A step of the loop cannot be done."""


class TurnEnds(ThriftyError):
    """The turn is over: nothing to learn, refused, or declined. `state` is one of `db.improve`."""

    def __init__(self, state: str, message: str) -> None:
        self.state = state
        super().__init__(message)


@dataclass(frozen=True)
class Turn:
    """One turn of the loop, for the process that works on it."""

    database: Database
    home: Home
    store: Store
    machine: Machine
    deployment: str
    settings: ImproveSpec
    who: str
    run: ImproveRun | None = None
    """None where nothing is to be done, only told."""
    on_progress: OnProgress = ignore_progress
    on_note: Callable[[str], None] = field(default=lambda text: None)

    @property
    def name(self) -> str:
        """What the models are called that it makes."""
        return self.settings.name or make_name(self.deployment)

    def read(self) -> DesiredDeployment:
        """The deployment as it is desired now. Raises `ControlError`."""
        return find_deployment(read_desired(self.database), self.deployment)

    def require(self, step: str) -> dict[str, Any]:
        """What an earlier step of the run came to."""
        assert self.run is not None
        outputs = read_run(self.database, self.run.id).find_outputs(step)
        assert outputs is not None, step
        return outputs


def make_name(deployment: str) -> str:
    """A deployment's name as that of a model: without what separates folders."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", deployment).strip("-.")[:56] or "model"


def find_deployment(desired: Desired, name: str) -> DesiredDeployment:
    """A deployment that is desired. Raises `ControlError`."""
    found = desired.deployments.get(name)
    if found is None:
        raise ControlError(
            f"there is no deployment {name!r}; {suggest(name, list(desired.deployments))}"
        )
    return found


def read_settings(there: DesiredDeployment) -> ImproveSpec:
    """The section `improve` of a deployment, or the defaults. Raises `ControlError`."""
    try:
        return ImproveSpec.model_validate(there.improve or {})
    except ValidationError as error:
        raise ControlError(
            f"'improve' of {there.name!r} was written by another release of Thrifty: {error}; apply "
            "the spec again"
        ) from None


def leave_texts(turn: Turn) -> dict[str, Any]:
    """The parts of a recipe by which prompts are learned as they are served: texts are not cleaned,
    and personal data are replaced where the service replaces them (`record.redact`).
    """
    service = read_desired(turn.database).service
    redacts = service is None or service.gateway.get("record_redact", True)
    return {"clean": {"unicode": "none"}, "redact": {} if redacts else False}


def find_serving(there: DesiredDeployment) -> DesiredVersion:
    """The version with most of the traffic. Raises `ImproveError` where its model is not ours."""
    main = max(there.versions, key=lambda version: version.weight)
    if main.artifact is None:
        raise ImproveError(
            f"{main.label} of {there.name!r} is served by the engine {main.engine}, which loads no "
            "stored model; there is nothing to train"
        )
    if there.family != Family.DECODER:
        raise ImproveError(f"'improve' {NO_LOOP}")
    return main


def find_parent(
    store: Store, database: Database, there: DesiredDeployment, main: DesiredVersion
) -> NamedVersion:
    """The model that the next version is trained from: what serves, before the pipeline of the spec
    compressed it. Raises `ImproveError`.
    """
    version = find_stored(store, main.artifact or "")
    again = MADE_BY_PIPELINES if _has_pipeline(database, there) else MADE_BY_ENGINES
    for one in walk_lineage(store, version):
        if one.lineage.recipe.get("step") not in again:
            return one
    raise ImproveError(
        f"the model that {version.label} was compressed from is not in the store any more; fetch it "
        "again (thrifty pull MODEL)"
    )


def find_own_versions(database: Database, deployment: str) -> set[str]:
    """The labels of the versions that the loop has made for a deployment."""
    found = (run.find_outputs("compress") for run in read_runs(database, deployment, MOST_RUNS))
    return {str(outputs["label"]) for outputs in found if outputs is not None}


def find_stored(store: Store, artifact_id: str) -> NamedVersion:
    """The newest name of an artifact. Raises `ImproveError`."""
    found = [one for one in store.versions() if one.artifact == artifact_id]
    if not found:
        raise ImproveError(
            f"the model {artifact_id or 'of this version'} has no name in the store any more; apply "
            "the spec again, which makes it anew"
        )
    return found[-1]


def _has_pipeline(database: Database, there: DesiredDeployment) -> bool:
    """Whether the spec compresses the deployment's models by a pipeline."""
    applied = read_applied(read_desired(database).service)
    if applied is None:
        return False
    main = max(there.versions, key=lambda version: version.weight)
    spec = write_spec(applied.written, list(applied.deployments), there, main.model)
    (loaded,) = parse_spec(spec).each()
    return loaded.versions()[0].loaded.spec.compress.is_pipeline
