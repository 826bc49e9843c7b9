"""The commands that replace replicas: `thrifty restart` and `thrifty drain`."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Why = Annotated[str | None, typer.Option("--why", help="The reason, for `thrifty history`.")]
Deployment = Annotated[str, typer.Argument(help="The deployment, as in `thrifty status`.")]


def restart(
    deployment: Annotated[
        str | None, typer.Argument(help="The deployment, as in `thrifty status`.")
    ] = None,
    version: Annotated[str | None, typer.Argument(help="Its version, by the label.")] = None,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Replace the gateway's workers one after the other, or all replicas of a version. No request is
    lost: what is new is ready before the old drains.
    """
    if deployment is None:
        from thrifty.cli.status import run_restart

        run_restart(as_json=as_json)
        return
    if version is None:
        raise typer.BadParameter("name the version, too", param_hint="VERSION")
    from thrifty.cli.show import print_json, print_line
    from thrifty.control.restart import restart_version
    from thrifty.control.service_api import Actor
    from thrifty.fleet.controller_note import open_home
    from thrifty.home import find_home

    actor = Actor.from_user("thrifty restart", why or "")
    with open_home(find_home()) as database:
        revision = restart_version(database, deployment, version, actor)
    if as_json:
        print_json({"deployment": deployment, "version": version, "revision": revision})
    else:
        print_line(
            f"{deployment} {version} is being restarted; 'thrifty status' shows how far it is."
        )


def drain(
    deployment: Deployment,
    replica: Annotated[str, typer.Argument(help="The replica's id, as in `thrifty status`.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also if no other replica of its version is ready.")
    ] = False,
    why: Why = None,
    as_json: Json = False,
) -> None:
    """Have one replica finish what it answers and end; another one takes its place."""
    from thrifty.cli.show import print_json, print_line
    from thrifty.control.restart import drain_replica
    from thrifty.control.service_api import Actor
    from thrifty.fleet.controller_note import open_home
    from thrifty.home import find_home

    actor = Actor.from_user("thrifty drain", why or "")
    with open_home(find_home()) as database:
        drain_replica(database, deployment, replica, actor, force=force)
    if as_json:
        print_json({"deployment": deployment, "replica": replica})
    else:
        print_line(f"{replica} is being drained; 'thrifty status' shows how far it is.")
