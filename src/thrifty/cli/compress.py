"""`thrifty compress`: the pipeline of a spec, without serving what it makes."""

from __future__ import annotations

from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.compare.columns import DIVERGENCE, EMBEDDINGS, format_divergence, format_embeddings
from thrifty.compress.pipeline import PipelineResult, Stage
from thrifty.engines.machine import detect_machine
from thrifty.errors import GateError
from thrifty.evaluate.suite import find_worst_domain
from thrifty.home import find_home
from thrifty.model_maker import Compressor
from thrifty.service import resolve_target
from thrifty.types import Family
from thrifty.units import format_bytes, format_duration


def run_compress(target: str, flags: dict[str, Any], *, as_json: bool) -> None:
    """Run the pipeline of each version of each deployment."""
    home, machine = find_home(), detect_machine()
    store = Store(home.models)
    each = [
        version.loaded for one in resolve_target(target, flags).each() for version in one.versions()
    ]
    compressor = Compressor(home, store, machine, tell)
    for one in each:
        compressor.check(one)
    made: list[PipelineResult] = []
    with show_progress() as on_progress:
        for one in each:
            model = fetch_model(store, one.spec.model, on_progress=on_progress)
            store.verify(model[1], on_progress=on_progress)
            made.append(compressor.run(one, model, on_progress))
    if as_json:
        print_json({"models": [_as_dict(one) for one in made]})
    else:
        for compressed in made:
            _show(compressed)
        for compressed in made:
            print_line(compressed.result[0].label)
    failed = [one.message for one in made if one.verdict is not None and not one.verdict.passed]
    if failed:
        raise GateError("; ".join(failed))


def _as_dict(compressed: PipelineResult) -> dict[str, Any]:
    return {
        "source": compressed.source[0].label,
        "result": compressed.result[0].label,
        "gate": None if compressed.verdict is None else compressed.verdict.as_dict(),
        "stages": [
            {
                "stage": stage.name,
                "step": stage.planned.step,
                "steps": stage.planned.steps,
                "name": stage.version.label,
                "bytes": stage.artifact.size_bytes,
                "recipe": stage.version.lineage.recipe,
                "figures": stage.version.lineage.figures,
                "measured": [
                    {"kind": m.kind, "conditions": m.conditions, "values": m.values}
                    for m in stage.measured
                ],
            }
            for stage in compressed.stages
        ],
    }


def _show(compressed: PipelineResult) -> None:
    columns: tuple[str, ...]
    if compressed.source[1].description.family is Family.ENCODER:
        columns = ("worst domain", *EMBEDDINGS, "tasks", "load", "texts/s, 1 / 32 a request")
    else:
        columns = ("worst domain", *DIVERGENCE, "tasks", "load", "tokens/s, 1 / 8 streams")
    print_table(("stage", "model", "size", *columns), [_row(stage) for stage in compressed.stages])
    print_line()


def _row(stage: Stage) -> tuple[str, ...]:
    def find(kind: str) -> list[dict[str, Any]]:
        return [m.values for m in stage.measured if m.kind == kind]

    speed = next(iter(find("speed")), {})
    speeds = speed.get("texts_per_s") or speed.get("tokens_per_s") or {}
    worst = find_worst_domain(stage.measured)
    values = worst.values if worst is not None else None
    encoder = stage.artifact.description.family is Family.ENCODER
    form = format_embeddings if encoder else format_divergence
    quality = (values["domain"] if values is not None else "", *form(values))
    return (
        stage.planned.title,
        stage.version.label,
        format_bytes(stage.artifact.size_bytes),
        *quality,
        ", ".join(f"{one['task']} {one['difference']:+.1%}" for one in find("task")),
        format_duration(speed["load_s"]) if speed else "",
        " / ".join(f"{value:.0f}" for value in speeds.values()),
    )
