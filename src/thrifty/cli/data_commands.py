"""The commands about data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    help="Data sets: fetched ones to evaluate with, built ones to train on.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Named = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="Default: the newest version.")
]


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """List the sets that can be fetched, and those that were built."""
    from thrifty.cli.data import run_list

    run_list(as_json=as_json)


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Fetch sets; prints the path of each."""
    from thrifty.cli.data import run_fetch

    run_fetch(names)


@data_app.command("build")
def data_build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="See docs/data.md.")],
    out: Annotated[str, typer.Option("--out", metavar="NAME", help="The set's name.")],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes. The result is the same. Default: one for each core."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Work on the Ray cluster whose head is there; its nodes see THRIFTY_HOME and the sources.",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Use nothing that a killed build had finished.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what the model of `augment` would be asked, and its cost; ask nothing, and make "
            "no set.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a set by a recipe: clean, deduplicate, keep apart from evaluation sets, split. A leak
    ends it with exit status 3. A build that was killed goes on where it was.
    """
    from thrifty.cli.data_sets import run_build

    run_build(
        recipe, out, workers=workers, ray=ray, restart=restart, dry_run=dry_run, as_json=as_json
    )


@data_app.command("show")
def data_show(
    named: Named,
    row: Annotated[
        int | None, typer.Option(min=0, help="One row, and its history from source to place.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Print the path of the report.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a set was built of, and what each stage did."""
    from thrifty.cli.data_sets import run_show

    run_show(named, row=row, report=report, as_json=as_json)


@data_app.command("remove")
def data_remove(
    named: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="Default: all versions of the set.")
    ],
) -> None:
    """Remove a built set, or one version of it."""
    from thrifty.cli.data_sets import run_remove

    run_remove(named)
