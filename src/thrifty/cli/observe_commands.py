"""The commands about how a service does: files for others' tools, a live view, alerts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

observe_app = typer.Typer(help="Files for Grafana and Prometheus.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


@observe_app.command("export")
def observe_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write to.")],
    availability: Annotated[
        float,
        typer.Option(min=0.94, max=0.99999, help="The share of requests that must not fail."),
    ] = 0.99,
    minimum: Annotated[
        int, typer.Option(min=1, help="No alert on fewer requests than this in the long window.")
    ] = 100,
    as_json: Json = False,
) -> None:
    """Write a Grafana dashboard, and Prometheus's configuration with recording and alert rules."""
    from thrifty.cli.observe import run_export

    run_export(folder, availability, minimum, as_json=as_json)


def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds between two looks.")] = 2.0,
    window: Annotated[
        float, typer.Option(min=5, max=300, help="Seconds that the figures are over.")
    ] = 30.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON alone: one object for each look.")
    ] = False,
) -> None:
    """Watch deployments, versions and replicas: load, latencies, caches, errors."""
    from thrifty.cli.top import run_top

    run_top(once=once, every_s=every, window_s=window, as_json=as_json)
