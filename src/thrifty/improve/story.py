"""All that is known of one model: origin, data, decisions, and what users said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from thrifty.artifacts import NamedVersion, Store
from thrifty.artifacts.lineage import walk_lineage
from thrifty.artifacts.verdicts import find_verdict
from thrifty.data.built import open_set
from thrifty.db import Database
from thrifty.db.improve import describe_run, read_runs
from thrifty.db.releases import read_releases
from thrifty.db.tables import rollups
from thrifty.errors import DataError
from thrifty.home import Home
from thrifty.improve.steps import IMPROVE

MOST_RUNS = 1000
DAY_S = 86400


def tell_story(store: Store, home: Home, database: Database | None, named: str) -> dict[str, Any]:
    """The story of a stored model, as `thrifty show --json` prints it. Without a database, what it
    knows is left out. Raises `ArtifactError` and `DatabaseError`.
    """
    version, artifact = store.find(named)
    lineage = list(walk_lineage(store, version))
    kin = find_kin(store, lineage)
    trained = next((one for one in lineage if one.lineage.recipe.get("step") == "train"), None)
    verdict = find_verdict(store, version)
    names = {one.label for one in kin}
    runs = _list_runs(store, database, kin, names)
    # What a version is called where it serves.
    labels = names | {
        step["outputs"]["label"] for run in runs for step in run["steps"]
        if isinstance(step, dict) and "label" in step["outputs"]
    }  # fmt: skip
    return {
        "name": version.label, "id": artifact.id, "bytes": artifact.size_bytes,
        "database": database is not None,
        "lineage": [_describe_version(one) for one in lineage],
        "data": _list_data(home, lineage),
        "training": None if trained is None else _describe_training(trained),
        "gate": None if verdict is None else {"at": verdict.measured, **verdict.values},
        "measurements": [
            {"kind": one.kind, "at": one.measured, "on": one.conditions}
            for one in store.read_measurements(artifact.id) if one.kind != IMPROVE
        ],
        "runs": runs,
        "releases": [] if database is None else _list_releases(database, labels),
        "feedback": [] if database is None else _list_feedback(database, labels),
        "children": [
            one.label for one in store.versions()
            if any(parent.id == artifact.id for parent in one.lineage.parents)
        ],
    }  # fmt: skip


def find_kin(store: Store, lineage: list[NamedVersion]) -> list[NamedVersion]:
    """A model in all of its forms: what it was prepared from without being trained, and what was
    prepared from it, so that what serves under one name is found by another.
    """
    kin = []
    for one in lineage:
        kin.append(one)
        if one.lineage.recipe.get("step") in (None, "train", "distill", "prune"):
            break
    known = store.versions()
    ids = {one.artifact for one in kin}
    grown = True
    while grown:
        more = [
            one for one in known
            if one.artifact not in ids and one.lineage.recipe.get("step") not in ("train", "distill", "prune")
            and any(parent.id in ids for parent in one.lineage.parents)
        ]  # fmt: skip
        kin += more
        ids |= {one.artifact for one in more}
        grown = bool(more)
    return kin


def _describe_version(one: NamedVersion) -> dict[str, Any]:
    return {
        "name": one.label, "artifact": one.artifact, "created": one.created,
        "source": one.lineage.source, "recipe": one.lineage.recipe, "made_by": one.lineage.made_by,
    }  # fmt: skip


def _describe_training(one: NamedVersion) -> dict[str, Any]:
    figures = one.lineage.figures
    kept = ("unit", "before", "after", "steps", "best_step", "seconds", "tokens", "rows", "details")
    return {
        "model": one.label, "method": one.lineage.recipe.get("method"),
        **{name: figures.get(name) for name in kept},
    }  # fmt: skip


def _list_data(home: Home, lineage: list[NamedVersion]) -> list[dict[str, Any]]:
    found = []
    for one in lineage:
        named = one.lineage.recipe.get("data")
        if not isinstance(named, str):
            continue
        rows = one.lineage.figures.get("rows") or {}
        count = rows.get("learned", 0) + rows.get("held_out", 0)
        try:
            sources = list(open_set(home.datasets, named).manifest.get("sources", ()))
            here = True
        except DataError:
            # A file of rows is no built set.
            paths = one.lineage.figures.get("data_paths") or ()
            sources, here = [], bool(paths) and all(Path(path).is_file() for path in paths)
        found.append({"name": named, "rows": count, "here": here, "sources": sources})
    return found


def _list_runs(
    store: Store, database: Database | None, kin: list[NamedVersion], names: set[str]
) -> list[dict[str, Any]]:
    if database is not None:
        runs = read_runs(database, limit=MOST_RUNS)
        return [
            describe_run(run) for run in runs
            if (run.find_outputs("train") or {}).get("model") in names
        ]  # fmt: skip
    return [
        {"id": one.conditions["run"], "deployment": one.conditions["deployment"], **one.values}
        for artifact in {version.artifact for version in kin}
        for one in store.read_measurements(artifact)
        if one.kind == IMPROVE
    ]


def _list_releases(database: Database, names: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": one.id, "deployment": one.deployment, "candidate": one.candidate,
            "state": one.state, "verdict": one.record.verdict, "message": one.record.message,
            "created_s": one.created_s,
        }
        for one in read_releases(database, limit=MOST_RUNS)
        if one.candidate in names
    ]  # fmt: skip


def _list_feedback(database: Database, names: set[str]) -> list[dict[str, Any]]:
    """Thumbs by deployment, for the versions that are called as the model is."""
    if not names:
        return []
    table = rollups
    query = (
        select(
            table.c.deployment, table.c.version, func.sum(table.c.requests).label("requests"),
            func.sum(table.c.up).label("up"), func.sum(table.c.down).label("down"),
        )
        .where(table.c.version.in_(sorted(names)), table.c.step_s == DAY_S)
        .group_by(table.c.deployment, table.c.version)
    )  # fmt: skip
    with database.begin() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
