"""A comparison as one self-contained HTML file: the table, and the plots as inline SVG.

Colours follow the reader's light or dark setting. The page is a Jinja template, which escapes all
values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from thrifty.compare.answers import make_sample_rows
from thrifty.compare.columns import (
    describe_conditions,
    describe_worst,
    make_cells,
    make_columns,
    make_domain_table,
)
from thrifty.compare.scatter import Scatter, make_scatters, round_step
from thrifty.compare.table import Comparison
from thrifty.files import write_atomically
from thrifty.version import __version__

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 16, 50
LETTER = 6.8
"""The approximate width of a label's letter, by which labels are kept apart."""
LINE = 15

STYLE_COLOURS = 8
"""The number of colours in the template: `--c0` and so on."""


@dataclass(frozen=True)
class Frame:
    """The position of a plot's axes, in the units of its `viewBox`."""

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report atomically to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, make_report(comparison))


def make_report(comparison: Comparison) -> str:
    """The whole page as HTML."""
    colours = {
        row.name: f"var(--c{index % STYLE_COLOURS})" for index, row in enumerate(comparison.rows)
    }
    environment = Environment(
        loader=PackageLoader("thrifty.compare"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    domain_columns, domain_rows = make_domain_table(comparison)
    return environment.get_template("report.html").render(
        version=__version__,
        reference=comparison.reference,
        columns=make_columns(comparison),
        rows=[
            {"colour": colours[row.name], "cells": make_cells(comparison, row)}
            for row in comparison.rows
        ],
        headlines=[
            f"{row.name}: {describe_worst(row.worst, row.domains[row.worst])}"
            for row in comparison.rows
            if row.worst is not None and len(comparison.domains) > 1
        ],
        domain_columns=domain_columns,
        domain_rows=[{"colour": colours[cells[0]], "cells": cells} for cells in domain_rows],
        answer_columns=[
            comparison.reference,
            *(row.name for row in comparison.rows if row.answers is not None),
        ],
        answer_rows=make_sample_rows([row.answers for row in comparison.rows]),
        frame=Frame(),
        plots=[_place(scatter, colours) for scatter in make_scatters(comparison)],
        conditions=[*describe_conditions(comparison), *comparison.notes],
        lineages=[row.lineage for row in comparison.rows],
    )


def _place(scatter: Scatter, colours: dict[str, str]) -> dict[str, Any]:
    """The ticks, marks and labels of a plot, with their coordinates."""
    frame = Frame()
    low, high = scatter.y_range

    def at_x(value: float) -> float:
        return frame.left + value / scatter.x_end * (frame.right - frame.left)

    def at_y(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return frame.bottom - share * (frame.bottom - frame.top)

    step = round_step(scatter.x_end / 5)
    spots = [(at_x(point.x), at_y(point.y)) for point in scatter.points]
    labels = place_labels([point.name for point in scatter.points], spots)
    marks = []
    for point, (x, y), (left, base) in zip(scatter.points, spots, labels, strict=True):
        # A name to the left of its point ends there, whatever the width of its letters.
        after = left > x
        leader = {"x": round(x + (9 if after else -9), 1), "y": round(base - 4, 1)}
        marks.append({
            "name": point.name,
            "says": f"{point.y:.4f} ± {point.error:.4f} at {point.x:.4g}",
            "colour": colours[point.name],
            "x": round(x, 1),
            "y": round(y, 1),
            "error_top": round(at_y(point.y + point.error), 1),
            "error_bottom": round(at_y(max(point.y - point.error, point.y * 1e-3)), 1),
            "leader": leader if abs(base - 4 - y) > LINE else None,
            "label_x": round(left if after else left + len(point.name) * LETTER, 1),
            "label_y": round(base, 1),
            "anchor": "start" if after else "end",
        })  # fmt: skip
    return {
        "title": scatter.title,
        "better": "left" if "size" in scatter.title else "right",
        "x_label": scatter.x_label,
        "y_label": scatter.y_label,
        "y_ticks": [
            {"at": round(at_y(10.0**power), 1), "label": f"{10.0**power:g}"}
            for power in range(low, math.floor(high) + 1)
        ],
        "x_ticks": [
            {"at": round(at_x(index * step), 1), "label": f"{index * step:g}"}
            for index in range(round(scatter.x_end / step) + 1)
        ],
        "marks": marks,
    }


def place_labels(names: list[str], spots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The start and the baseline of each name: beside its point, inside the plot and, if there is
    room, without overlapping other names and points.
    """
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    placed = []
    for name, (x, y) in zip(names, spots, strict=True):
        width = len(name) * LETTER
        tries = []
        for shift in sorted(range(-8 * LINE, 9 * LINE, LINE), key=abs):
            tries += [(x + 11, y + 4 + shift), (x - 11 - width, y + 4 + shift)]
        inside = [
            (left, base)
            for left, base in tries
            if left >= LEFT + 2 and left + width <= WIDTH - 2 and TOP <= base < HEIGHT - BOTTOM
        ] or [(max(LEFT + 2.0, WIDTH - width - 2), y - 12)]
        free = [
            (left, base)
            for left, base in inside
            if not any(
                left < other[2] and left + width > other[0]
                and base - 11 < other[3] and base + 3 > other[1]
                for other in taken
            )
        ]  # fmt: skip
        left, base = (free or inside)[0]
        taken.append((left, base - 11, left + width, base + 3))
        placed.append((left, base))
    return placed
