"""`thrifty optimize`: the search for the cheapest way to serve a model here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.engines.machine import detect_machine
from thrifty.errors import BenchError, GateError
from thrifty.home import find_home
from thrifty.optimize.report import COLUMNS, describe_outcome, make_row
from thrifty.optimize.run import Optimized, OptimizeRequest, optimize
from thrifty.optimize.steps import Step
from thrifty.units import format_duration, parse_duration_s


def run_optimize(
    model: str,
    *,
    max_drop: float,
    slo: str | None,
    load: str,
    budget: str,
    out: str | None,
    price_per_hour: float | None,
    spec: Path | None,
    domains: Sequence[str],
    text: Sequence[str],
    questions: str | None,
    again: bool,
    report: Path | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Search, and show what was found. Raises `GateError` where nothing is within the bound."""
    if png is not None:
        from thrifty.compare.plot import check_plots

        check_plots()
    try:
        budget_s = parse_duration_s(budget)
    except ValueError as error:
        raise BenchError(f"--budget: {error}") from None
    if price_per_hour is not None and price_per_hour <= 0:
        raise BenchError(f"--price-per-hour is above 0, not {price_per_hour:g}")
    if price_per_hour is not None and spec is not None:
        raise BenchError("--price-per-hour and --spec both say what the machine costs; name one")
    home = find_home()
    request = OptimizeRequest(
        model, max_drop, slo or "", load, budget_s, out, price_per_hour, spec, tuple(domains),
        tuple(text), questions, again=again,
    )  # fmt: skip
    with show_progress() as on_progress:
        found = optimize(
            request, store=Store(home.models), home=home, machine=detect_machine(),
            on_rung=_tell_rung, on_step=_tell_step, on_progress=on_progress,
        )  # fmt: skip
    if report is not None:
        from thrifty.optimize.report import write_report

        write_report(found, report)
        tell(f"The report is {report}")
    if png is not None:
        from thrifty.optimize.plot import plot_search

        plot_search(found, png)
        tell(f"The plots are in {png}")
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)
    if found.outcome.winner is None:
        raise GateError(describe_outcome(found))


def _tell_rung(rung: str, candidates: int, left_s: float) -> None:
    tell(f"{rung}: {candidates} candidates, {format_duration(max(0.0, left_s))} left")


def _tell_step(step: Step, left_s: float) -> None:
    tell(f"  {step.kind} {step.candidate} ({format_duration(max(0.0, left_s))} left)")


def _show(found: Optimized) -> None:
    print_table(COLUMNS, [make_row(one) for one in found.outcome.standings if one.rung])
    print_line()
    for note in found.notes:
        print_line(note)
    print_line(describe_outcome(found))
    if not found.relative:
        print_line(f"The machine costs {found.price.per_hour:g} an hour: {found.price.basis}")
    if found.registered is not None:
        print_line()
        print_line("# thrifty.yaml")
        print_line(found.snippet.rstrip())
