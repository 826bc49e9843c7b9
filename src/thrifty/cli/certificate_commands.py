"""The commands below `thrifty certificates`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

certificates_app = typer.Typer(
    help="Certificates by which the gateways and replicas of a fleet know each other.",
    no_args_is_help=True,
)


@certificates_app.command("make")
def make(
    folder: Annotated[Path, typer.Argument(help="Where they lie. Keep it: it holds the key.")],
    fleet: Annotated[
        str, typer.Option(help="The fleet that they are for (`fleet.name`).")
    ] = "thrifty",
    days: Annotated[int, typer.Option(min=1, max=825, help="How long they are good.")] = 90,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make new ones although those there still last.")
    ] = False,
    new_authority: Annotated[
        bool,
        typer.Option(
            "--new-authority", help="Have both sides believe a new authority beside the old one."
        ),
    ] = False,
    drop_old_authority: Annotated[
        bool, typer.Option("--drop-old-authority", help="Have them believe the new one alone.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")
    ] = False,
) -> None:
    """Make what is missing or ends soon, and say how it gets to where it is needed.

    Run it again now and then, such as every week: it renews certificates when a third of their life is
    left. `docs/certificates.md` says how the authority is replaced.
    """
    from thrifty.cli.certificates import run_make

    run_make(
        folder, fleet, days, renew=renew, new_authority=new_authority,
        drop_old=drop_old_authority, as_json=as_json,
    )  # fmt: skip
