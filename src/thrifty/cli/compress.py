"""`thrifty compress`: the pipeline of a spec, without serving what it makes."""

from __future__ import annotations

from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.figures import Measurement
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.compress.pipeline import Compressed, Stage
from thrifty.engines.machine import detect_machine
from thrifty.home import find_home
from thrifty.service import Compressor, resolve_target
from thrifty.units import format_bytes, format_duration


def run_compress(target: str, flags: dict[str, Any], *, as_json: bool) -> None:
    """Run the pipeline of each deployment."""
    home, machine = find_home(), detect_machine()
    store = Store(home.models)
    each = resolve_target(target, flags).each()
    compressor = Compressor(home, store, machine, tell)
    for one in each:
        compressor.check(one)
    made: list[Compressed] = []
    with show_progress() as on_progress:
        for one in each:
            model = fetch_model(store, one.spec.model, on_progress=on_progress)
            store.verify(model[1], on_progress=on_progress)
            made.append(compressor.run(one, model, on_progress))
    if as_json:
        print_json({"models": [_as_dict(one) for one in made]})
        return
    for compressed in made:
        _show(compressed)
    for compressed in made:
        print_line(compressed.result[0].label)


def _as_dict(compressed: Compressed) -> dict[str, Any]:
    return {
        "source": compressed.source[0].label,
        "result": compressed.result[0].label,
        "stages": [
            {
                "stage": stage.name,
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


def _show(compressed: Compressed) -> None:
    print_table(
        ("stage", "model", "size", "KL divergence", "same top token", "perplexity", "tasks",
         "load", "tokens/s, 1 / 8 streams"),
        [_row(stage) for stage in compressed.stages],
    )  # fmt: skip
    print_line()


def _row(stage: Stage) -> tuple[str, ...]:
    def find(kind: str) -> list[Measurement]:
        return [m for m in stage.measured if m.kind == kind]

    quality, speed = find("quality"), find("speed")
    first = quality[0].values if quality else None
    fast = speed[0].values if speed else None
    kl = first["kl_divergence"] if first else None
    tasks = [f"{m.values['task']} {m.values['difference']:+.1%}" for m in find("task")]
    speeds = [f"{value:.0f}" for value in fast.get("tokens_per_s", {}).values()] if fast else []
    return (
        stage.name,
        stage.version.label,
        format_bytes(stage.artifact.size_bytes),
        f"{kl['mean']:.4f} +- {kl['stderr']:.4f}" if kl else "",
        f"{first['same_top_token']:.1%}" if first else "",
        f"{first['perplexity_ratio']:.3f} x" if first else "",
        ", ".join(tasks),
        format_duration(fast["load_s"]) if fast else "",
        " / ".join(speeds),
    )
