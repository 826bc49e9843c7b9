"""The commands about the models in the store."""

from __future__ import annotations

from typing import Annotated

import typer

models_app = typer.Typer(help="The models in the store.", invoke_without_command=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
REMOTE_HELP = (
    "A folder or file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, or "
    "oci://HOST/REPOSITORY[:TAG]."
)


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


@models_app.command("push")
def models_push(
    name: Annotated[str, typer.Argument(metavar="NAME[@vN]")],
    url: Annotated[str, typer.Argument(metavar="URL", help=REMOTE_HELP)],
    rename: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME[@vN]",
            help="Its name and version there; without a version, the next one. Default: as here.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every blob back, and replace damaged ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Push a stored model to a remote, and print what to pull it by. An interrupted push is resumed."""
    from thrifty.cli.remotes import run_push

    run_push(name, url, rename=rename, verify=verify, as_json=as_json)


@models_app.command("pull")
def models_pull(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="REMOTE/NAME[@vN] or oci://HOST/REPOSITORY[:TAG].")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Its name here. Default: as in the remote.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pull a model from a remote. Every file is checked, and an interrupted pull is resumed."""
    from thrifty.cli.remotes import run_remote_pull

    run_remote_pull(url, name=name, as_json=as_json)
