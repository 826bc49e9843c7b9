"""A build's report as one self-contained HTML file, made of `report.json` and `samples.jsonl`.

Plots are inline SVG. The page is a Jinja template, which escapes all values.
"""

from __future__ import annotations

import json
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from thrifty.data.built import BuiltSet
from thrifty.files import write_atomically
from thrifty.version import __version__

BAR = 20
"""The height of a bar and the room around it."""
NAMES, WIDTH = 240, 640
REPORT = "report.html"


def write_report(built: BuiltSet) -> Path:
    """Write the page of a published set, such as after rows were erased; returns its path."""
    path = built.folder / REPORT
    write_atomically(path, make_html(built.folder, built.name), mode=0o600)
    return path


def make_html(folder: Path, name: str) -> str:
    """The whole page as HTML."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    aside = folder / "set-aside.jsonl"
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("thrifty.curate"), PackageLoader("thrifty.compare")]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    samples = [json.loads(line) for line in lines]
    return environment.get_template("data.html").render(
        version=__version__, name=name, report=report,
        plots=_make_plots(report),
        samples=[
            {"stage": stage, "reason": reason, "rows": list(group)}
            for (stage, reason), group in groupby(samples, lambda one: (one["stage"], one["reason"]))
        ],
        set_aside=[json.loads(line) for line in aside.read_text(encoding="utf-8").splitlines()]
        if aside.exists() else [],
    )  # fmt: skip


def _make_plots(report: dict[str, Any]) -> list[dict[str, Any]]:
    left = [("read", report["rows_in"])]
    left += [(f"after {one['stage']}", one["rows_out"]) for one in report["stages"]]
    lengths = report["lengths"]
    edges = [f"{edge:,.0f}" for edge in lengths["edges"]]
    bins = [f"{low} to {high}" for low, high in pairwise(edges)]
    plots = [
        _draw_bars("Rows that are left", left),
        _draw_bars(
            f"Length of a row in {lengths['unit']}", list(zip(bins, lengths["counts"], strict=True))
        ),
        _draw_bars("Rows of each source", list(report["sources"].items())),
    ]
    for title, key in (
        ("Languages of what was read", "languages"), ("Personal data replaced", "redacted"),
        ("Rows changed", "changed"), ("Labels", "labels"),
        ("Users, conversations and times that are not read", "unread"),
    ):  # fmt: skip
        if report.get(key):
            plots.append(_draw_bars(title, list(report[key].items())[:15]))
    for stage in report["stages"]:
        if len(stage["reasons"]) > 1:
            share = list(stage["reasons"].items())[:25]
            plots.append(_draw_bars(f"Removed by {stage['stage']}", share))
    return plots


def _draw_bars(title: str, values: list[tuple[str, float]]) -> dict[str, Any]:
    """Bars with their names and values, and where they stand."""
    most = max((value for _, value in values), default=0) or 1
    room = WIDTH - NAMES - 90
    return {
        "title": title, "width": WIDTH, "height": BAR * len(values) + 8, "names": NAMES,
        "bars": [
            {
                "name": str(name)[:36], "value": f"{value:,.0f}", "y": 4 + BAR * number,
                "length": round(room * value / most, 1),
            }
            for number, (name, value) in enumerate(values)
        ],
    }  # fmt: skip
