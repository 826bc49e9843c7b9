"""`thrifty cost`: what requests cost, what was saved, and what the month will come to."""

from __future__ import annotations

import time
from typing import Any

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, tell
from thrifty.cost.report import HOW_TO_PRICE, CostReport, Line, make_report
from thrifty.cost.speeds import find_speeds
from thrifty.db import Database
from thrifty.fleet.controller_note import open_home
from thrifty.home import Home, find_home
from thrifty.observe.rollups.roll import open_roller
from thrifty.untrusted_text import sanitize_line

NO_KEY = "(no key)"


def run_cost(by: str, since_s: float, price_per_hour: float | None, *, as_json: bool) -> None:
    """Show the cost of the time since `since_s`, in seconds since 1970."""
    home = find_home()
    with open_home(home) as database:
        report = _make_report(database, home, by, since_s, price_per_hour)
    if as_json:
        print_json(report.describe())
        return
    if not report.lines:
        print_line("No replica was held and no request came in this time. Start some: thrifty up")
        return
    _print(report)


def _make_report(
    database: Database, home: Home, by: str, since_s: float, price_per_hour: float | None
) -> CostReport:
    # What was written in the last seconds, or while no controller ran.
    open_roller(database).catch_up()
    return make_report(
        database, by=by, from_s=since_s, until_s=time.time(), fill_per_hour=price_per_hour,
        speeds=find_speeds(database, Store(home.models)),
    )  # fmt: skip


def _print(report: CostReport) -> None:
    named = [*dict.fromkeys(name for line in report.lines for name in line.labels)]
    columns = (
        *named, "cost", "requests'", "idle", "requests", "a request", "1M tokens",
        "an accepted", "held",
    )  # fmt: skip
    rows = [_row(line, named, report) for line in report.lines]
    if len(report.lines) > 1:
        rows.append(_row(report.total, named, report, first="all"))
    print_table(columns, rows)
    unheld = _money(report.unheld_nanos / 1e9) if report.is_priced else "unpriced"
    print_line(f"\nThe machine, held by no replica: {unheld}, {_time(report.unheld_ms / 1000)}.")
    for basis in report.bases:
        print_line(f"Price: {basis}.")
    if not report.is_priced:
        unpriced_s = report.total.cell.unpriced_ms / 1000
        print_line(f"Without a price: {_time(unpriced_s)} of the machine, which costs leave out.")
        tell(HOW_TO_PRICE)
    if report.savings:
        print_line("\nSaved:")
    for one in report.savings:
        of = f"{one.deployment} {one.version}".strip()
        amount = "not known" if one.nanos is None else _money(one.nanos / 1e9)
        seconds = "" if one.seconds is None else f", {_time(one.seconds)} of a replica"
        print_line(
            f"  {one.what}, {sanitize_line(of, 80)}: {amount}{seconds}. Beside: {one.baseline}."
        )
    if report.budgets:
        print_line("\nThis month (UTC):")
    for budget in report.budgets:
        name = f"{budget.of} {sanitize_line(budget.name, 64)}".strip()
        limit = "" if budget.limit is None else f" of {_money(budget.limit)}"
        ahead = budget.forecast
        if ahead.amount is None or ahead.low is None or ahead.high is None:
            outlook = f"no forecast: {ahead.basis}"
        else:
            outlook = (
                f"forecast {_money(ahead.amount)} ({_money(ahead.low)} to {_money(ahead.high)}): "
                f"{ahead.basis}"
            )
        print_line(f"  {name}: {_money(budget.spent)}{limit}; {outlook}.")


def _row(line: Line, named: list[str], report: CostReport, first: str = "") -> list[Any]:
    found = line.describe()
    shown = dict(line.labels)
    if shown.get("of") == "tenant" and not shown["tenant"]:
        shown["tenant"] = NO_KEY
    labels = [sanitize_line(shown.get(name, ""), 40) for name in named]
    if first:
        labels[0] = first
    return [
        *labels, _money(found["cost"]), _money(found["requests_cost"] + found["tokens_cost"]),
        _money(found["idle_cost"]), found["requests"], _money(found["per_request"]),
        _money(found["per_million_tokens"]), _money(found["per_accepted"]),
        _time(found["held_s"]),
    ]  # fmt: skip


def _money(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.4g}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds:.3g} s"
