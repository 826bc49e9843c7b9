"""The commands about the models in the store."""

from __future__ import annotations

from typing import Annotated

import typer

models_app = typer.Typer(help="The models in the store.", invoke_without_command=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


@models_app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models in the store."""
    if context.invoked_subcommand is None:
        from thrifty.cli.models import run_models

        run_models(as_json=as_json)


@models_app.command("path")
def models_path(name: Annotated[str, typer.Argument(metavar="NAME[@vN]")]) -> None:
    """Print the folder of a stored model."""
    from thrifty.cli.models import run_path

    run_path(name)


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(metavar="NAME[@vN]")], as_json: Json = False
) -> None:
    """Show a model: its files, and what it was made from."""
    from thrifty.cli.models import run_show

    run_show(name, as_json=as_json)


@models_app.command("verify")
def models_verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME[@vN]]")] = None,
) -> None:
    """Read every byte of one model, or of all, and compare checksums."""
    from thrifty.cli.models import run_verify

    run_verify(name)


@models_app.command("rm")
def models_remove(name: Annotated[str, typer.Argument(metavar="NAME@vN")]) -> None:
    """Take a version out of the store; `gc` then frees its space."""
    from thrifty.cli.models import run_remove

    run_remove(name)


@models_app.command("gc")
def models_collect(as_json: Json = False) -> None:
    """Free the space of what nothing needs any more: models without a name, and the checkpoints of
    trainings that have ended. Served versions stay.
    """
    from thrifty.cli.models import run_collect

    run_collect(as_json=as_json)
