"""The commands about what requests cost and about taking records elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def cost(
    by: Annotated[str, typer.Option(help="version, deployment, tenant or day.")] = "version",
    since: Annotated[
        str, typer.Option(help="How far back, such as 24h or 30d; full hours count.")
    ] = "30d",
    price_per_hour: Annotated[
        float | None,
        typer.Option(help="What the machine costs an hour, for the time when no spec said it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what requests cost, what caches and compression saved, and what the month will come to."""
    from thrifty.cli.cost import run_cost

    if price_per_hour is not None and not 0 <= price_per_hour < 1e9:
        raise typer.BadParameter("must be at least 0", param_hint="--price-per-hour")
    run_cost(by, time.time() - _parse(since, "--since"), price_per_hour, as_json=as_json)


def export(
    what: Annotated[
        str, typer.Argument(help="requests, feedback, rollups, tenant-rollups or replicas.")
    ],
    out: Annotated[Path, typer.Option(help="A file that ends in .parquet or .jsonl.")],
    since: Annotated[
        str | None, typer.Option(help="How far back, such as 7d. Default: all there is.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    as_json: Json = False,
) -> None:
    """Write records into a file for other programs. Texts of prompts and answers are left out."""
    from thrifty.cli.export import run_export

    since_s = None if since is None else time.time() - _parse(since, "--since")
    run_export(what, out, since_s, tenant, as_json=as_json)


def _parse(text: str, option: str) -> float:
    from thrifty.units import parse_duration_s

    try:
        return parse_duration_s(text)
    except ValueError as fault:
        raise typer.BadParameter(str(fault), param_hint=option) from None
