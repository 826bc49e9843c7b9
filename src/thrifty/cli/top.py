"""`thrifty top`: deployments, versions and replicas, live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from thrifty.cli.show import make_console
from thrifty.control.live import read_live
from thrifty.db import Database
from thrifty.errors import DatabaseError
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.untrusted_text import sanitize_line

_COLUMNS = (
    "", "state", "req/s", "TTFT p50", "p95", "token", "tokens/s", "running", "queue", "cache", "KV",
    "errors/s",
)  # fmt: skip


def run_top(*, once: bool, every_s: float, window_s: float, as_json: bool) -> None:
    """Show how the service does, until Ctrl-C or once."""
    console = make_console()
    once = once or not (as_json or console.is_terminal)
    with open_home(find_home()) as database:
        try:
            if once:
                _show(read_live(database, window_s), console, as_json=as_json)
            elif as_json:
                for figures in _look(database, window_s, every_s):
                    _show(figures, console, as_json=True)
            else:
                with Live(console=console, screen=True, auto_refresh=False) as live:
                    for figures in _look(database, window_s, every_s):
                        live.update(make_view(figures), refresh=True)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            sys.stdout = None


def _look(database: Database, window_s: float, every_s: float) -> Iterator[dict[str, Any]]:
    """Figures now and again; while the database is away, what was seen last with the reason."""
    figures: dict[str, Any] = {"at_s": time.time(), "window_s": window_s, "deployments": []}
    while True:
        try:
            figures = read_live(database, window_s)
        except DatabaseError as error:
            figures = {**figures, "fault": str(error)}
            database.recover()
        yield figures
        time.sleep(every_s)


def _show(figures: dict[str, Any], console: Console, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
    else:
        console.print(make_view(figures))


def make_view(figures: dict[str, Any]) -> Group:
    """The figures as a table, with a line above it."""
    at = datetime.fromtimestamp(figures["at_s"], UTC)
    head = Text(f"{at:%Y-%m-%d %H:%M:%S} UTC   the last {figures['window_s']:.0f} s", style="bold")
    if "fault" in figures:
        head.append(f"   {sanitize_line(figures['fault'], 200)}", style="red")
    table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="dim")
    for column in table.columns[2:]:
        column.justify = "right"
    for deployment in figures["deployments"]:
        table.add_row(*_describe(deployment["name"], "", deployment), style="bold")
        for version in deployment["versions"]:
            state = f"{version['state']} {version['ready']}/{version['wanted']}"
            name = f"  {version['label']}  {version['share']:.0%}"
            table.add_row(*_describe(name, state, version), style=_style(version["state"]))
            for replica in version["replicas"]:
                row = _describe(f"    {replica['id']}", replica["state"], replica)
                table.add_row(*row, style=_style(replica["state"], "dim"))
    if not figures["deployments"]:
        return Group(head, Text("Nothing is deployed. Start something: thrifty up"))
    return Group(head, table)


def _style(state: str, usual: str = "") -> str:
    return usual if state in ("ready", "parked", "asleep") else "yellow"


def _describe(name: str, state: str, figures: dict[str, Any]) -> list[Text]:
    queue = figures.get("waiting")
    if "queued" in figures:
        queue = figures["queued"] + figures["held"]
    cells = (
        sanitize_line(name, 60), state, _number(figures["requests_per_s"]),
        _time(figures["ttft_p50_s"]), _time(figures["ttft_p95_s"]), _time(figures["tpot_p50_s"]),
        _number(figures["tokens_per_s"]), _count(figures.get("running", figures.get("in_flight"))),
        _count(queue), _share(figures["cache_hit_ratio"]), _share(figures.get("kv_usage")),
        _number(figures["errors_per_s"]) if figures["errors_per_s"] else "",
    )  # fmt: skip
    return [Text(cell) for cell in cells]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
