"""A comparison as one HTML file that needs nothing else: the table, and plots as inline SVG.

Colours follow the reader's setting, light or dark. Everything that comes from models is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

from thrifty.artifacts.disk import write_file
from thrifty.compare.columns import describe_conditions, make_cells, make_columns
from thrifty.compare.scatter import Point, Scatter, make_scatters, round_step
from thrifty.compare.table import Comparison, Row
from thrifty.version import __version__

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 16, 50
LETTER = 6.8
"""The width of a letter of labels, about, to keep them apart by."""
LINE = 15

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d2329; --soft: #5a6672; --line: #d9dee3;
  --grid: #e9edf0; --panel: #f6f8f9; --c0: #1f6f9f; --c1: #b4541a; --c2: #2c7a4b; --c3: #7a4fa3;
  --c4: #a3324e; --c5: #6b6a12; --c6: #3c5a99; --c7: #8a5a3b; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --ink: #e4e9ed; --soft: #9aa7b2;
  --line: #333c44; --grid: #262d33; --panel: #1b2126; --c0: #6cb8e6; --c1: #f09a5e; --c2: #71c995;
  --c3: #c09be8; --c4: #ee8ba3; --c5: #cfcd5c; --c6: #93aef0; --c7: #d3a07c; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .75rem; }
p, li { max-width: 78ch; }
.soft { color: var(--soft); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { background: var(--panel); font-weight: 600; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
td:first-child, th:first-child { text-align: left; }
td:first-child { font-weight: 600; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; flex: 1 1 26rem; max-width: 44rem; border: 1px solid var(--line);
  border-radius: 8px; padding: .75rem; }
figcaption { font-weight: 600; margin: 0 0 .25rem .25rem; }
figcaption span { font-weight: 400; color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg text.name { fill: var(--ink); }
svg .grid { stroke: var(--grid); } svg .leader { stroke: var(--soft); stroke-width: .7; } svg .axis { stroke: var(--soft); }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
"""


def write_report(comparison: Comparison, path: Path) -> None:
    """Put the report at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, make_report(comparison).encode())


def make_report(comparison: Comparison) -> str:
    """The whole page."""
    colours = {row.name: f"var(--c{index % 8})" for index, row in enumerate(comparison.rows)}
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Models beside {escape(comparison.reference)}</title>\n<style>{STYLE}</style>\n"
        "</head>\n<body>\n<h1>Models side by side</h1>\n"
        f'<p class="soft">Held to {escape(comparison.reference)}. Made by Thrifty {__version__}.</p>',
        _table(comparison, colours),
    ]
    scatters = make_scatters(comparison)
    if scatters:
        parts.append("<h2>Plots</h2>\n<div class='plots'>")
        parts += [_plot(scatter, colours) for scatter in scatters]
        parts.append("</div>")
    parts.append("<h2>What was measured, and on what</h2>\n<ul>")
    parts += [f"<li>{escape(line)}</li>" for line in describe_conditions(comparison)]
    parts += [f"<li>{escape(line)}</li>" for line in comparison.notes]
    parts.append("</ul>\n<h2>What each was made from</h2>\n<ul>")
    parts += [f"<li>{_lineage(row)}</li>" for row in comparison.rows]
    parts.append("</ul>\n</body>\n</html>\n")
    return "\n".join(parts)


def _table(comparison: Comparison, colours: dict[str, str]) -> str:
    columns = make_columns(comparison)
    heads = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for row in comparison.rows:
        first, *others = make_cells(comparison, row)
        dot = f'<span class="dot" style="background:{colours[row.name]}"></span>'
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        lines.append(f"<tr><td>{dot}{escape(first)}</td>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _lineage(row: Row) -> str:
    return " &larr; ".join(
        f"<strong>{escape(step.name)}</strong> <span class='soft'>({escape(step.how)})</span>"
        for step in row.lineage
    )


def _plot(scatter: Scatter, colours: dict[str, str]) -> str:
    low, high = scatter.y_range
    end = scatter.x_end
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at_x(value: float) -> float:
        return LEFT + value / end * inner_width

    def at_y(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return TOP + (1 - share) * inner_height

    better = "left" if "size" in scatter.title else "right"
    parts = [
        f"<figure><figcaption>{escape(scatter.title)} <span>(lower {better} is better)</span>"
        f'</figcaption>\n<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(scatter.title)}">'
    ]
    for power in range(low, math.floor(high) + 1):
        y = at_y(10.0**power)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        )
    step = round_step(end / 5)
    for index in range(round(end / step) + 1):
        x = at_x(index * step)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{index * step:g}</text>"
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
        f'y2="{HEIGHT - BOTTOM}"/>'
        f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{LEFT + inner_width / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{escape(scatter.x_label)}</text>"
        f'<text transform="translate(16 {TOP + inner_height / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(scatter.y_label)}</text>'
    )
    spots = [(at_x(point.x), at_y(point.y)) for point in scatter.points]
    labels = place_labels([point.name for point in scatter.points], spots)
    for point, (x, y), (left, base) in zip(scatter.points, spots, labels, strict=True):
        parts.append(_mark(point, colours[point.name], x, y, at_y))
        # A name on the left ends at its point, however wide its letters are.
        if abs(base - 4 - y) > LINE:
            parts.append(
                f'<line class="leader" x1="{x:.1f}" x2="{x + (9 if left > x else -9):.1f}" '
                f'y1="{y:.1f}" y2="{base - 4:.1f}"/>'
            )
        edge, anchor = (left, "start") if left > x else (left + len(point.name) * LETTER, "end")
        parts.append(
            f'<text class="name" x="{edge:.1f}" y="{base:.1f}" text-anchor="{anchor}">'
            f"{escape(point.name)}</text>"
        )
    parts.append("</svg></figure>")
    return "\n".join(parts)


def _mark(point: Point, colour: str, x: float, y: float, at_y: Callable[[float], float]) -> str:
    top, bottom = at_y(point.y + point.error), at_y(max(point.y - point.error, point.y * 1e-3))
    return (
        f'<g style="stroke:{colour};fill:{colour}"><title>{escape(point.name)}: {point.y:.4f} '
        f"± {point.error:.4f} at {point.x:.4g}</title>"
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5"/></g>'
    )


def place_labels(names: list[str], spots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each name begins and its baseline is: beside its point, inside the plot, on no other name
    and no point as far as there is room.
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
