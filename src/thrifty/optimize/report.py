"""A search in words, and as one self-contained HTML file: the pick, the plots, every candidate with
the reason why it lost, the command that repeats it, the machine and the versions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from thrifty.compare.report import Frame, place_labels
from thrifty.compare.scatter import round_step
from thrifty.evaluate.gate import ANSWERS_KEPT
from thrifty.files import write_atomically
from thrifty.optimize.intervals import Interval
from thrifty.optimize.run import Optimized
from thrifty.optimize.scatter import Point, Scatter, make_scatters
from thrifty.optimize.search import FINALISTS
from thrifty.optimize.standing import Standing, Status
from thrifty.units import format_bytes, format_duration
from thrifty.version import __version__

COLUMNS = (
    "candidate", "became", "worst drop", "on", "answers lost", "tokens/s", "cost, million tokens",
    "memory", "why",
)  # fmt: skip
_COLOURS = {Status.WINNER: "--c2", Status.BEYOND: "--c4", Status.UNCERTAIN: "--c1"}


def make_row(one: Standing) -> tuple[str, ...]:
    """A candidate as a row of a table."""
    domains = {name: drop for name, drop in one.drops.items() if name != ANSWERS_KEPT}
    worst = max(domains, key=lambda name: domains[name].value, default=None)
    memory = one.measured.get("memory_bytes")
    return (
        str(one.candidate),
        one.status.value,
        "" if worst is None else _format(domains[worst], "{:.2%}"),
        worst or "",
        _format(one.drops[ANSWERS_KEPT], "{:.1%}") if ANSWERS_KEPT in one.drops else "",
        "" if one.speed is None else _format(one.speed, "{:.1f}"),
        "" if one.cost is None else _format(one.cost, "{:.3g}"),
        format_bytes(memory) if memory else "",
        one.why,
    )


def _format(found: Interval, form: str) -> str:
    def show(value: float) -> str:
        return form.format(value) if math.isfinite(value) else "none"

    return f"{show(found.value)} [{show(found.low)}, {show(found.high)}]"


def describe_outcome(found: Optimized) -> str:
    """What came of the search, in a sentence or two."""
    bound = f"a drop of {found.request.max_drop:.1%}"
    outcome = found.outcome
    if outcome.winner is not None and found.registered is not None:
        cost = outcome.winner.cost
        assert cost is not None
        unit = " (relative to a machine for 1.0 an hour)" if found.relative else ""
        return (
            f"{found.registered.label} is {outcome.winner.candidate}: the cheapest found within "
            f"{bound} with 95% confidence, {_format(cost, '{:.3g}')} for a million tokens{unit}, "
            f"in {format_duration(outcome.spent_s)}"
        )
    if outcome.nearest is not None and outcome.nearest.status is Status.NO_TIME:
        return (
            f"nothing was proved to be within {bound} in {format_duration(outcome.spent_s)}"
            f"{_describe_nearest(outcome.nearest)}. The same command with a larger --budget goes on"
        )
    reached = "" if outcome.nearest is None else _describe_nearest(outcome.nearest)
    return (
        f"nothing was found within {bound} with 95% confidence in "
        f"{format_duration(outcome.spent_s)}{reached}. What helps: a larger --budget, a larger "
        "--max-drop, or a longer --slo"
    )


def _describe_nearest(one: Standing) -> str:
    worst = one.worst
    assert worst is not None
    return (
        f"; the nearest is {one.candidate}, which drops by {_format(worst[1], '{:.1%}')} on "
        f"{worst[0]} ({one.status.value}: {one.why})"
    )


def write_report(found: Optimized, path: Path) -> None:
    """Write the report atomically to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, make_report(found))


def make_report(found: Optimized) -> str:
    """The whole page as HTML. The template escapes all values."""
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("thrifty.optimize"), PackageLoader("thrifty.compare")]
        ), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # Those that came furthest first, the winner on top.
    order = sorted(
        found.outcome.standings,
        key=lambda one: (
            one.status is not Status.WINNER, one.cost is None,
            one.cost.value if one.cost else 0.0, one.candidate.id,
        ),
    )  # fmt: skip
    return environment.get_template("report.html").render(
        title=f"The cheapest form of {found.reference.label}",
        says=describe_outcome(found),
        snippet=found.snippet,
        command=found.request.as_command(),
        columns=COLUMNS,
        rows=[
            {"colour": _colour(one.status), "cells": make_row(one), "id": one.candidate.id}
            for one in order
        ],
        winner_domains=_make_domains(found),
        frame=Frame(),
        plots=[_place(scatter) for scatter in make_scatters(found)],
        conditions=_describe_conditions(found),
        legend=[
            ("the winner", _COLOURS[Status.WINNER]), ("beyond the bound", _COLOURS[Status.BEYOND]),
            ("not certain", _COLOURS[Status.UNCERTAIN]), ("others", "--c0"),
        ],
    )  # fmt: skip


def _make_domains(found: Optimized) -> list[tuple[str, str]]:
    one = found.outcome.winner or found.outcome.nearest
    if one is None:
        return []
    return [(name, _format(drop, "{:.2%}")) for name, drop in one.drops.items()]


def _describe_conditions(found: Optimized) -> list[str]:
    request, machine = found.request, found.machine
    price = found.price
    asked = f"{found.questions} questions" if found.questions else "no questions"
    return [
        f"Machine: {machine.processor}, {machine.core_count} cores, "
        f"{format_bytes(machine.memory_bytes)}; engine {found.engine}; Thrifty {__version__}.",
        f"Reference: {found.reference.label}. Judged on {', '.join(found.domains)}, and {asked}.",
        f"Load: {found.load}; objective: {request.slo or 'none, so that every answer counts'}.",
        "Costs are relative to a machine for 1.0 an hour." if found.relative
        else f"The machine costs {price.per_hour:g} an hour ({price.basis}).",
        f"Budget: {format_duration(request.budget_s)}, of which "
        f"{format_duration(found.outcome.spent_s)} were used.",
        f"Intervals of drops hold together for the {FINALISTS} forms that are proved at most, with "
        "95% confidence. Drops of candidates that went early come from few tokens.",
        *found.notes,
    ]  # fmt: skip


def _colour(status: Status) -> str:
    return f"var({_COLOURS.get(status, '--c0')})"


def _place(scatter: Scatter) -> dict[str, Any]:
    """The ticks, marks and labels of a plot, with their coordinates."""
    frame = Frame()
    x_end, y_end = scatter.x_end, scatter.y_end

    def at_x(value: float) -> float:
        return round(frame.left + min(value / x_end, 1.0) * (frame.right - frame.left), 1)

    def at_y(value: float) -> float:
        return round(frame.bottom - min(value / y_end, 1.0) * (frame.bottom - frame.top), 1)

    front = scatter.front
    named = _choose_named(front)
    spots = [(at_x(point.x.value), at_y(point.drop.value)) for point in named]
    names = [_shorten(point) for point in named]
    labels = [
        {"text": name, "x": round(left, 1), "y": round(base, 1)}
        for name, (left, base) in zip(names, place_labels(names, spots), strict=True)
    ]
    x_step, y_step = round_step(x_end / 5), round_step(y_end / 5)
    return {
        "title": scatter.title, "better": scatter.better, "x_label": scatter.x_label,
        "bound": at_y(scatter.bound), "labels": labels,
        "front": " ".join(f"{at_x(p.x.value)},{at_y(p.drop.value)}" for p in front),
        "x_ticks": [
            {"at": at_x(n * x_step), "label": f"{n * x_step:g}"}
            for n in range(round(x_end / x_step) + 1)
        ],
        "y_ticks": [
            {"at": at_y(n * y_step), "label": f"{n * y_step:.3g}"}
            for n in range(int(y_end / y_step + 1e-9) + 1)
        ],
        "marks": [
            {
                "says": f"{p.says}: drops by {_format(p.drop, '{:.2%}')} at "
                        f"{_format(p.x, '{:.4g}')}; {p.status.value}",
                "colour": _colour(p.status), "x": at_x(p.x.value), "y": at_y(p.drop.value),
                "left": at_x(max(0.0, p.x.low)), "right": at_x(min(p.x.high, x_end)),
                "top": at_y(p.drop.high), "bottom": at_y(p.drop.low),
                "radius": 7 if p.status is Status.WINNER else 4.5,
            }
            for p in sorted(scatter.points, key=lambda p: p.status is Status.WINNER)
        ],
    }  # fmt: skip


def _choose_named(front: list[Point]) -> list[Point]:
    """A few of the front, so that names do not cover the plot."""
    return [p for p in front if p.status is Status.WINNER] + [
        p for p in front if p.status is not Status.WINNER
    ][:3]


def _shorten(point: Point) -> str:
    return point.says if len(point.says) <= 34 else point.says[:33] + "…"
