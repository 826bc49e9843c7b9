"""The commands below `thrifty deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

deploy_app = typer.Typer(
    help="Write what other platforms run, from the same spec.", no_args_is_help=True
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


@deploy_app.command("targets")
def targets(
    name: Annotated[str | None, typer.Argument(help="Show one target's options too.")] = None,
    as_json: Json = False,
) -> None:
    """List the platforms, and what each cannot do."""
    from thrifty.cli.deploy import run_targets

    run_targets(name, as_json=as_json)


@deploy_app.command("render")
def render(
    target: Annotated[
        str, typer.Argument(help="A target, as `thrifty deploy targets` lists them.")
    ],
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The spec.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write to.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of the target, such as image=registry.example.com/thrifty:1. May be "
            "repeated.",
        ),
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what would change, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the files with which a platform runs a spec. Reaches no platform."""
    from thrifty.cli.deploy import run_render

    run_render(target, spec, out, settings or [], diff=diff, as_json=as_json)
