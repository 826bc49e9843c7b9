"""`thrifty compare`: models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.show import err, print_json, print_line, print_table, show_progress
from thrifty.cli.texts import make_log_finder
from thrifty.compare.columns import describe_conditions, make_cells, make_columns, make_domain_table
from thrifty.compare.table import ComparisonRequest, compare
from thrifty.engines.machine import detect_machine
from thrifty.home import find_home


def run_compare(
    models: Sequence[str],
    *,
    reference: str | None,
    domains: Sequence[str],
    tokens: int | None,
    tasks: Sequence[str],
    items: int | None,
    measure: bool,
    speed_again: bool,
    answers: bool,
    report: Path | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Compare models."""
    if png is not None:
        from thrifty.compare.plot import check_plots

        check_plots()
    home = find_home()
    with show_progress() as on_progress:
        request = ComparisonRequest(
            models,
            reference,
            domains,
            tokens,
            tasks,
            items,
            measure=measure,
            speed_again=speed_again,
            answers=answers,
        )
        found = compare(
            request, store=Store(home.models), home=home, machine=detect_machine(),
            on_progress=on_progress, find_log=make_log_finder(home),
        )  # fmt: skip
    if report is not None:
        from thrifty.compare.report import write_report

        write_report(found, report)
        err.print(f"The report is {report}")
    if png is not None:
        from thrifty.compare.plot import plot_comparison

        plot_comparison(found, png)
        err.print(f"The plots are in {png}")
    if as_json:
        print_json(found.as_dict())
        return
    print_table(make_columns(found), [make_cells(found, row) for row in found.rows])
    print_line()
    domain_columns, domain_rows = make_domain_table(found)
    if domain_rows:
        print_table(domain_columns, domain_rows)
        print_line()
    for row in found.rows:
        print_line(f"{row.name}: " + " <- ".join(step.how for step in row.lineage))
    print_line()
    for line in (*describe_conditions(found), *found.notes):
        print_line(line)
