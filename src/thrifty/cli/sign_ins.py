"""`thrifty keys rotate`, and people who are signed in through an identity provider: `thrifty keys
sign-ins` and `sign-out`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from thrifty.cli.show import print_json, print_line, print_table

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def rotate(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    keep: Annotated[
        str, typer.Option(help="How long the secret of before stays good, such as 24h.")
    ] = "0s",
) -> None:
    """Give a key another secret, and print it, this once, alone on stdout."""
    from thrifty.cli.keys import run_rotate

    run_rotate(name, keep)


def sign_ins(as_json: Json = False) -> None:
    """List who is signed in to the console through an identity provider."""
    from thrifty.db.sign_ins import list_sign_ins
    from thrifty.fleet.controller_note import open_home
    from thrifty.home import find_home

    with open_home(find_home()) as database:
        found = list_sign_ins(database)
    if as_json:
        print_json(
            [
                {
                    "name": one.key.name, "role": one.key.role.value, "tenant": one.key.tenant,
                    "since_s": one.key.created_s, "until_s": one.until_s,
                }
                for one in found
            ]
        )  # fmt: skip
        return
    if not found:
        print_line("Nobody is signed in through an identity provider.")
        return
    rows = [
        (one.key.name, one.key.role.value, _show(one.key.created_s), _show(one.until_s))
        for one in found
    ]
    print_table(("name", "role", "since", "until"), rows)


def sign_out(
    name: Annotated[
        str | None, typer.Argument(help="As in 'thrifty keys sign-ins'. Default: everybody.")
    ] = None,
) -> None:
    """Sign people out of the console at once, everywhere. They may sign in again."""
    from thrifty.control.service_api import Actor
    from thrifty.db.sign_ins import end_sign_ins
    from thrifty.fleet.controller_note import open_home
    from thrifty.home import find_home

    who = Actor.from_user("thrifty keys sign-out").who
    with open_home(find_home()) as database:
        count = end_sign_ins(database, name, who)
    print_line(f"{count} sign-in{'' if count == 1 else 's'} ended.")


def _show(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
