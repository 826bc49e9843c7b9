"""The commands that release a version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Why = Annotated[str | None, typer.Option("--why", help="The reason, for the record.")]


ACTS = ("pause", "resume", "promote", "abort")


def release(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME@vN | LABEL | pause | resume | promote | abort",
            help="The model or version to release, or what to do with a release.",
        ),
    ],
    release_id: Annotated[
        int | None, typer.Argument(metavar="[ID]", help="The release, for the acts.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="The deployment.")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A YAML file with the plan. Default: 1, 5, 25 and 100 percent."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Release a version by evidence, step by step, and roll it back by itself when it is worse."""
    from thrifty.cli.release import run_act, run_release

    if what in ACTS:
        if release_id is None:
            raise typer.BadParameter(f"'thrifty release {what}' needs the release's ID")
        run_act(what, release_id, why=why, as_json=as_json)
        return
    if release_id is not None:
        raise typer.BadParameter(f"an ID goes with one of {', '.join(ACTS)}, not with {what!r}")
    if to is None:
        raise typer.BadParameter("say to which deployment: --to DEPLOYMENT")
    run_release(what, to, plan, yes=yes, why=why, as_json=as_json)


def quality(
    deployment: Annotated[str | None, typer.Option(help="Only this deployment's.")] = None,
    as_json: Json = False,
) -> None:
    """Show what each version answers to canary questions, and whether that has changed."""
    from thrifty.cli.quality import run_quality

    run_quality(deployment, as_json=as_json)


def releases(
    release_id: Annotated[
        int | None, typer.Argument(metavar="[ID]", help="Show one release with its decisions.")
    ] = None,
    deployment: Annotated[str | None, typer.Option(help="Only this deployment's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List releases with their stage, verdict and figures, the newest first."""
    from thrifty.cli.release import run_releases

    run_releases(release_id, deployment, limit=limit, as_json=as_json)
