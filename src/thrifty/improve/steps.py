"""The steps of a turn after `collect`: train, compress, gate, and the release.

Each returns what it came to, as JSON. Each may be called again after its process was killed: a
training goes on from its last checkpoint, models and answers that were made are found again, and a
release that began is taken up.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from thrifty.artifacts import Store
from thrifty.artifacts.verdicts import GATE
from thrifty.control.candidate import find_candidate, prepare_candidate
from thrifty.data.augmentation import AS_IT_IS, Augmentation, parse_augmentation
from thrifty.db.desired import Desired, DesiredChange, change_desired, read_desired
from thrifty.db.desired_state import DesiredVersion
from thrifty.db.improve import DONE, NOTHING, REFUSED, ImproveRun, note_outputs
from thrifty.db.releases import (
    ReleaseRow,
    find_active,
    read_active,
    read_events,
    read_held,
    read_release,
    read_releases,
    refuse_second,
)
from thrifty.errors import TrainingError
from thrifty.fleet.controller_note import read_controller_note
from thrifty.improve.gate.request import GateRequest
from thrifty.improve.gate.run import run_gate
from thrifty.improve.turn import (
    ImproveError,
    Turn,
    TurnEnds,
    find_deployment,
    find_own_versions,
    find_serving,
    find_stored,
)
from thrifty.model_maker import Compressor
from thrifty.release.manage import KIND as RELEASE
from thrifty.release.manage import start_release
from thrifty.release.plan import parse_plan
from thrifty.train.named_data import find_rows
from thrifty.train.request import BETA, LORA_RANK, TrainingRequest
from thrifty.train.rows import Method
from thrifty.train.run import train_model
from thrifty.train.settings import IMPROVED_NOTHING
from thrifty.types import Progress

LOOK_S = 1.0
EVIDENCE_DEVIATIONS = 1.645
"""A share of held-out pairs that were learned is above half by chance in one of twenty cases."""
IMPROVE = "improve"
"""The kind of the measurement that tells a model's story in the store."""


def train(turn: Turn) -> dict[str, Any]:
    """Train the next version on the set of this turn. Raises `TurnEnds` where it learns nothing
    that holds for rows held out, and `TrainingError`.
    """
    collected, settings = turn.require("collect"), turn.settings.train
    method = Method(collected["method"])
    rows = find_rows(turn.home, collected["data"], method)
    request = TrainingRequest(
        collected["parent"], rows.learned, method, turn.name, data_name=rows.name,
        held_out=rows.held_out, epochs=settings.epochs, minutes=settings.minutes,
        learning_rate=settings.learning_rate,
        lora_rank=LORA_RANK if settings.lora_rank is None else settings.lora_rank,
        window=settings.window, beta=BETA if settings.beta is None else settings.beta,
        sft_weight=settings.sft_weight if method is Method.DPO else 0.0,
        adapter=settings.adapter, processes=settings.processes, seed=settings.seed,
        augment=_find_augmentation(settings.augment),
    )  # fmt: skip
    try:
        version, artifact = train_model(
            turn.store, turn.home, request, turn.on_progress, turn.on_note
        )
    except TrainingError as error:
        if str(error).startswith(IMPROVED_NOTHING):
            # It would come to the same again.
            raise TurnEnds(NOTHING, str(error)) from None
        raise
    figures = version.lineage.figures
    _require_evidence(collected.get("signal"), figures["details"])
    kept = ("before", "after", "unit", "steps", "best_step", "seconds", "tokens", "learning_rate")
    return {
        "model": version.label, "artifact": artifact.id,
        **{name: figures[name] for name in kept if name in figures},
    }  # fmt: skip


def _require_evidence(signal: dict[str, Any] | None, details: dict[str, Any]) -> None:
    """Raise `TurnEnds` where neither the feedback nor the training shows that something was learned
    which holds for other prompts: what random likes change is no improvement.
    """
    if signal is None or signal["found"] or "preferred" not in details:
        return
    preferred = details["preferred"]["after"]
    if preferred > 0.5 + EVIDENCE_DEVIATIONS * details["by_chance"]["after"]:
        return
    raise TurnEnds(
        NOTHING,
        f"the feedback looks random: {signal['told']:.0%} of liked answers are told from disliked "
        f"ones by their form and words, and {preferred:.0%} by what was trained on the others; more "
        "feedback may show more",
    )


def _find_augmentation(wanted: str | None) -> Augmentation:
    """What the spec asks for. Feedback holds nothing that models made of it, so that only noise is
    tried.
    """
    if wanted is None:
        return AS_IT_IS
    return parse_augmentation("auto,noise" if wanted == "auto" else wanted)


def compress(turn: Turn) -> dict[str, Any]:
    """Compress and prepare the new model as the deployment is. Raises `ThriftyError` kinds."""
    model = turn.require("train")["model"]
    maker = Compressor(turn.home, turn.store, turn.machine, turn.on_note)
    version = prepare_candidate(
        turn.database, turn.home, turn.machine, turn.deployment, model, turn.on_progress,
        maker=maker,
    )  # fmt: skip
    assert version.artifact is not None
    made = find_stored(turn.store, version.artifact)
    size = turn.store.load(version.artifact).size_bytes
    return {"label": version.label, "served": made.label, "artifact": version.artifact, "bytes": size}  # fmt: skip


def gate(turn: Turn) -> dict[str, Any]:
    """Judge the new version, as it will serve, beside the one that serves. Raises `TurnEnds` where
    it must not serve, and `EvaluationError`.
    """
    made, trained, wanted = turn.require("compress"), turn.require("train"), turn.settings.gate
    serving = find_stored(turn.store, find_serving(turn.read()).artifact or "")
    trusted = turn.require("collect").get("trusted")
    request = GateRequest(
        made["served"], serving.label, wanted.data, wanted.margin, wanted.items, wanted.tokens,
        wanted.speed, None if trusted is None else trusted["data"], wanted.judge,
    )  # fmt: skip
    result = run_gate(
        turn.store, turn.home, request, turn.on_progress, turn.on_note, turn.machine, turn.database
    )
    verdict = max(
        (one for one in turn.store.read_measurements(made["artifact"]) if one.kind == GATE),
        key=lambda one: one.measured,
    )
    # What is made of the model in another form has this verdict, too.
    turn.store.record_measurement(trained["artifact"], GATE, verdict.conditions, verdict.values)
    outputs = {
        "verdict": "pass" if result.passed else "fail", "message": result.message,
        "against": serving.label, "record": str(result.record),
        "failed": [one.label for one in result.slices if one.failed],
    }  # fmt: skip
    if not result.passed:
        assert turn.run is not None
        note_outputs(turn.database, turn.run, "gate", outputs)
        raise TurnEnds(REFUSED, f"{result.message}. The record: {result.record}")
    return outputs


def release(turn: Turn) -> ReleaseRow:
    """Begin to release the new version, or find the release that began. Raises `ControlError`, also
    where another release of the deployment is under way: nothing is touched then.
    """
    assert turn.run is not None
    made, model = turn.require("compress"), turn.require("train")["model"]
    step = turn.run.steps.get("release")
    known = step.outputs.get("release") if step is not None else None
    if known is not None:
        return read_release(turn.database, int(known))
    found = find_own_release(turn, made["label"])
    if found is not None:
        return found
    for active in read_active(turn.database, turn.deployment):
        raise refuse_second(active)
    version = None
    if find_candidate(turn.database, turn.deployment, made["label"]) is None:
        maker = Compressor(turn.home, turn.store, turn.machine, turn.on_note)
        version = prepare_candidate(
            turn.database, turn.home, turn.machine, turn.deployment, model, turn.on_progress,
            maker=maker,
        )  # fmt: skip
    plan = parse_plan(turn.settings.release)
    retire_versions(turn, made["label"])
    return start_release(
        turn.database, turn.deployment, made["label"], plan, who=turn.who,
        why=f"run {turn.run.id} of the loop", new_version=version,
    )  # fmt: skip


def find_own_release(turn: Turn, candidate: str) -> ReleaseRow | None:
    """The newest release of the candidate that is under way or began after the steps before it
    ended: that of this run, whose process was killed before it noted the release.
    """
    assert turn.run is not None
    ended = [one.ended_s or 0.0 for one in turn.run.steps.values() if one.state == DONE]
    for one in read_releases(turn.database, turn.deployment):
        if one.candidate == candidate and (one.is_active or one.created_s >= max(ended, default=0)):
            return one
    return None


def retire_versions(turn: Turn, candidate: str) -> None:
    """Stop the versions of earlier turns that have no traffic any more, so that each turn does not
    leave a replica behind; not while conversations are held on their versions. Those of the spec
    stay. Raises `ControlError` while a release is under way, which may be that of one of them.
    """
    own = find_own_versions(turn.database, turn.deployment) - {candidate}
    with turn.database.begin() as connection:
        if any(one.deployment == turn.deployment for one in read_held(connection)):
            return

    def stays(version: DesiredVersion) -> bool:
        return version.weight > 0 or version.shadow > 0 or version.label not in own

    def decide(state: Desired) -> list[DesiredChange]:
        there = find_deployment(state, turn.deployment)
        kept = tuple(version for version in there.versions if stays(version))
        return [DesiredChange(turn.deployment, replace(there, versions=kept))]

    def refuse(connection: Connection) -> None:
        active = find_active(connection, turn.deployment)
        if active is not None:
            raise refuse_second(active)

    gone = [version.label for version in turn.read().versions if not stays(version)]
    if gone:
        why = f"{', '.join(gone)} of earlier turns without traffic"
        change_desired(turn.database, decide, kind=RELEASE, who=turn.who, why=why, also=refuse)
        turn.on_note(f"stopped: {why}")


def wait_for_release(turn: Turn, release_id: int) -> ReleaseRow:
    """Wait until a release has ended, and tell each decision; returns at once where no controller
    carries it out. Blocks.
    """
    told = 0
    while True:
        row = read_release(turn.database, release_id)
        for event in read_events(turn.database, release_id):
            if event.id > told:
                told = event.id
                turn.on_note(f"release {release_id}: {event.kind}: {event.why}")
        stages = parse_plan(row.record.plan).stages
        if not row.is_active:
            return row
        note = read_controller_note(turn.home)
        if note is None or not note.alive:
            turn.on_note("No service runs here; 'thrifty up' goes on with the release.")
            return row
        turn.on_progress(Progress("release", row.record.stage, len(stages) - 1, "stages"))
        time.sleep(LOOK_S)


def note_story(store: Store, run: ImproveRun) -> None:
    """Write how a run ended beside the model that it made, so that it outlives the database."""
    trained = run.find_outputs("train")
    if trained is None or not store.has(trained["artifact"]):
        return
    steps = {
        name: {"state": one.state, "began_s": one.began_s, "ended_s": one.ended_s, **one.outputs}
        for name, one in run.steps.items()
    }
    values = {"state": run.state, "message": run.message, "steps": steps}
    conditions = {"deployment": run.deployment, "run": run.id}
    store.record_measurement(trained["artifact"], IMPROVE, conditions, values)


def check_ready(turn: Turn) -> None:
    """Refuse what cannot end well, before anything is done. Raises `ImproveError`."""
    service = read_desired(turn.database).service
    gateway = service.gateway if service is not None else {}
    if not gateway.get("record_requests", True) or not gateway.get("record_prompts", False):
        raise ImproveError(
            "the loop learns from recorded questions and answers, which the spec does not keep; "
            "set 'record: {prompts: true}' and apply it"
        )
    find_serving(turn.read())
