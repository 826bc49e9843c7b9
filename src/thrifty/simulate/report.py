"""A simulation as a table, and as one self-contained HTML file with its course over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from thrifty.compare.report import STYLE_COLOURS, Frame
from thrifty.compare.scatter import round_step
from thrifty.files import write_atomically
from thrifty.simulate.outcome import Outcome
from thrifty.simulate.panels import Panel, make_panels
from thrifty.simulate.run import Simulated, Sizing
from thrifty.units import format_duration
from thrifty.version import __version__

COLUMNS = (
    "policy", "within objective", "TTFT p50", "TTFT p95", "TPOT p95", "refused", "replicas",
    "replica hours", "cost", "turns an hour",
)  # fmt: skip


def make_row(found: Outcome) -> tuple[str, ...]:
    """A policy as a row of the table."""
    return (
        found.name,
        f"{found.slo_attainment:.1%}",
        show_seconds(found.ttft_p50_s),
        show_seconds(found.ttft_p95_s),
        show_seconds(found.tpot_p95_s),
        str(found.refused),
        f"{found.min_replicas} to {found.max_replicas}",
        f"{found.replica_hours:.2f}",
        f"{found.cost:.3g}",
        f"{found.changes_of_direction_per_hour:.1f}",
    )


def show_seconds(seconds: float) -> str:
    """A latency, in milliseconds below a second."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def describe_sizing(sizing: Sizing) -> str:
    """How many replicas of one kind it takes, in a sentence."""
    parts = []
    if sizing.fixed is None:
        parts.append("no number of replicas that is allowed holds the objective all the time")
    else:
        fixed = sizing.fixed
        parts.append(
            f"{fixed.max_replicas} always running hold the objective ({fixed.slo_attainment:.1%} of "
            f"requests; {fixed.replica_hours:.2f} replica hours, cost {fixed.cost:.3g})"
        )
    scaled = sizing.autoscaled
    if scaled is not None:
        parts.append(
            f"autoscaled, {scaled.min_replicas} to {scaled.max_replicas} reach "
            f"{scaled.slo_attainment:.1%} ({scaled.replica_hours:.2f} replica hours, cost "
            f"{scaled.cost:.3g})"
        )
    if sizing.capacity is None:
        parts.append(
            "one replica does not hold the objective for this trace's requests even without load"
        )
    else:
        parts.append(f"one takes {sizing.capacity.requests_per_s:.3g} requests a second")
    return f"{sizing.rates}: " + "; ".join(parts)


def describe_conditions(found: Simulated) -> list[str]:
    """What was simulated, in sentences."""
    trace, first = found.trace, found.setups[0]
    goals = [
        f"{name} within {show_seconds(value)}"
        for name, value in (("TTFT", first.objective.ttft_s), ("TPOT", first.objective.tpot_s))
        if value is not None
    ]
    objective = " and ".join(goals) or "none, so that every answered request counts"
    lines = [
        f"Trace: {trace.path}, {trace.requests} requests in "
        f"{format_duration(trace.duration_s)}, prompts of {trace.prompt_tokens_mean:.0f} tokens and "
        f"answers of {trace.answer_tokens_mean:.0f} on average"
        + ("." if trace.shares_beginnings else "; it does not say which prompts begin alike."),
        f"Objective: {objective}.",
        f"Between {first.bounds.low} and {first.bounds.high} replicas; routing {first.routing}; "
        f"seed {first.seed}; Thrifty {__version__}.",
        *(
            f"Rates of {setup.rates.name}: {setup.rates.source or 'as given'}; ready after "
            f"{format_duration(setup.rates.start_s)}; {setup.rates.slots} slots."
            for setup in found.setups
        ),
    ]
    if first.warm_up_s:
        lines.append(
            f"The first {format_duration(first.warm_up_s)} are played and do not count, but for the "
            "course over time."
        )
    if trace.faults.count:
        lines.append(
            f"{trace.faults.count} rows of the trace cannot be used and were skipped: "
            + "; ".join(trace.faults.shown)
        )
    return lines


def write_report(found: Simulated, path: Path) -> None:
    """Write the report atomically to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, make_report(found))


def make_report(found: Simulated) -> str:
    """The whole page as HTML. The template escapes all values."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("thrifty.simulate"), PackageLoader("thrifty.compare")]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    colours = {
        name: f"var(--c{index % STYLE_COLOURS})" for index, name in enumerate(found.policies)
    }
    return environment.get_template("simulation.html").render(
        title=f"{found.setups[0].rates.name} under {Path(found.trace.path).name}",
        sizings=[describe_sizing(sizing) for sizing in found.sizings],
        columns=COLUMNS,
        rows=[
            {"colour": colours[name], "cells": make_row(outcome)}
            for name, outcome in found.policies.items()
        ],
        legend=colours,
        frame=Frame(),
        plots=[_place(panel, colours) for panel in make_panels(found)],
        conditions=describe_conditions(found),
    )


def _place(panel: Panel, colours: dict[str, str]) -> dict[str, Any]:
    """The ticks and curves of a plot, with their coordinates."""
    frame = Frame()
    x_end, y_end = panel.x_end, panel.y_end
    x_step, y_step = round_step(x_end / 5), round_step(y_end / 5)

    def at_x(value: float) -> float:
        return round(frame.left + value / x_end * (frame.right - frame.left), 1)

    def at_y(value: float) -> float:
        return round(frame.bottom - min(value / y_end, 1.0) * (frame.bottom - frame.top), 1)

    curves = []
    for curve in panel.curves:
        places: list[str] = []
        for x, y in curve.points:
            if panel.steps and places:
                places.append(f"{places[-1].partition(',')[0]},{at_y(y)}")
            places.append(f"{at_x(x)},{at_y(y)}")
        curves.append(
            {
                "name": curve.name,
                "colour": colours.get(curve.name, "var(--c0)"),
                "points": " ".join(places),
            }
        )
    return {
        "title": panel.title,
        "unit": panel.unit,
        "bound": None if panel.bound is None else at_y(panel.bound),
        "curves": curves,
        "x_ticks": [
            {"at": at_x(n * x_step), "label": f"{n * x_step:g}"}
            for n in range(int(x_end / x_step + 1e-9) + 1)
        ],
        "y_ticks": [
            {"at": at_y(n * y_step), "label": f"{n * y_step:.3g}"}
            for n in range(int(y_end / y_step + 1e-9) + 1)
        ],
    }
