"""The commands of the loop, and the story of a model."""

from __future__ import annotations

from typing import Annotated

import typer

improve_app = typer.Typer(
    help="The loop: from feedback to the next version, judged and released.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Deployment = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="The deployment.")]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Return once the release has begun; do not wait for it.")
]


@improve_app.command()
def run(
    deployment: Deployment,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only tell what it would do, with sizes, minutes and cost."),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Give up the run that has not ended, and begin anew.")
    ] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Make the next version from feedback and release it; goes on with a run that was stopped."""
    from thrifty.cli.improve import run_dry, run_improve

    if dry_run:
        run_dry(deployment, as_json=as_json)
    else:
        run_improve(deployment, restart=restart, wait=not no_wait, as_json=as_json)


@improve_app.command()
def status(
    deployment: Annotated[
        str | None, typer.Argument(metavar="[DEPLOYMENT]", help="Only this deployment's.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many runs.")] = 10,
    as_json: Json = False,
) -> None:
    """Show runs of the loop with their steps, the newest first."""
    from thrifty.cli.improve import run_status

    run_status(deployment, limit=limit, as_json=as_json)


@improve_app.command()
def approve(
    deployment: Deployment,
    decline: Annotated[
        bool, typer.Option("--decline", help="End the run without a release.")
    ] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Have the version released that passed the gate and waits for approval."""
    from thrifty.cli.improve import run_approve

    run_approve(deployment, decline=decline, wait=not no_wait, as_json=as_json)


def show(
    name: Annotated[str, typer.Argument(metavar="NAME@vN", help="A stored model.")],
    as_json: Json = False,
) -> None:
    """Tell a model's story: data, recipe, measurements, gate, releases, and what users said."""
    from thrifty.cli.improve import run_story

    run_story(name, as_json=as_json)
