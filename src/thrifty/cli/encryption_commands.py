"""The commands about the encryption of recorded texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

encryption_app = typer.Typer(help="Keys of recorded texts.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


@encryption_app.command("new-key")
def new_key(
    file: Annotated[
        Path | None,
        typer.Option(help="Add the key to this file, which is made if it is not there."),
    ] = None,
) -> None:
    """Make a key. In a file it writes from then on, and the older ones read; without a file it is
    printed, for a secret store.
    """
    from thrifty.cli.encryption import run_new_key

    run_new_key(file)


@encryption_app.command("status")
def encryption_status(as_json: Json = False) -> None:
    """Show the keys and how many texts each has encrypted; exits with 1 if a key is missing."""
    from thrifty.cli.encryption import run_status

    run_status(as_json=as_json)


@encryption_app.command("reseal")
def encryption_reseal(as_json: Json = False) -> None:
    """Encrypt all texts with the newest key, plain ones too. Older keys may go afterwards."""
    from thrifty.cli.encryption import run_reseal

    run_reseal(as_json=as_json)
