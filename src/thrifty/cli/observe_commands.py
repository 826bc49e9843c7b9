"""The commands about how a service does: files for others' tools, a live view, alerts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

observe_app = typer.Typer(help="Files for Grafana and Prometheus.", no_args_is_help=True)
alerts_app = typer.Typer(help="What is wrong, and who is told.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


@observe_app.command("export")
def observe_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write to.")],
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SPEC.yaml]", help="A spec, whose `alerts` say what the rules alert on."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a Grafana dashboard, and Prometheus's configuration with recording and alert rules."""
    from thrifty.cli.observe import run_export

    run_export(folder, spec, as_json=as_json)


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


@alerts_app.command("list")
def alerts_list(
    over: Annotated[
        bool, typer.Option("--all", help="Also those of the last week that are over.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what is wrong, since when, and what to do."""
    from thrifty.cli.alerts import run_list

    run_list(over=over, as_json=as_json)


@alerts_app.command("test")
def alerts_test(as_json: Json = False) -> None:
    """Send a test to everybody who is told of alerts; exits with 1 if one cannot be reached."""
    from thrifty.cli.alerts import run_test

    run_test(as_json=as_json)


@alerts_app.command("silence")
def alerts_silence(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="errors, slow, crash_loop, budget, feedback or database. Default: all.",
        ),
    ] = None,
    deployment: Annotated[str | None, typer.Option(help="Only of this deployment.")] = None,
    version: Annotated[str | None, typer.Option(help="Only of this version, by its label.")] = None,
    period: Annotated[str, typer.Option("--for", help="How long, such as 2h.")] = "1h",
    why: Annotated[str, typer.Option("--why", help="The reason, for others to read.")] = "",
) -> None:
    """Tell nobody of some alerts for a while. They are still listed."""
    from thrifty.cli.alerts import run_silence

    run_silence(kind, deployment, version, period, why)


@alerts_app.command("unsilence")
def alerts_unsilence(
    number: Annotated[int, typer.Argument(help="The silence, as `thrifty alerts list` shows it.")],
) -> None:
    """End a silence."""
    from thrifty.cli.alerts import run_unsilence

    run_unsilence(number)
