"""`thrifty forget` and `thrifty subject-export`: one person's data, erased or collected."""

from __future__ import annotations

import sys
from dataclasses import asdict

import typer

from thrifty.cli.show import print_json, print_line, tell
from thrifty.control.service_api import Actor
from thrifty.erase.erase import collect_person, count_person, erase_person, require_user
from thrifty.errors import ThriftyError
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.untrusted_text import sanitize_line


def run_forget(user: str, tenant: str | None, *, yes: bool, as_json: bool) -> None:
    """Erase a person's data; exits with 1 where something is left."""
    require_user(user)
    home = find_home()
    with open_home(home) as database:
        if not yes:
            person = count_person(database, user, tenant)
            _ask(user, len(person.responses), len(person.conversations))
        erasure = erase_person(
            database,
            home,
            user,
            tenant,
            lambda step: tell(f"{step} ..."),
            who=Actor.from_user("thrifty forget").who,
        )
    if as_json:
        print_json(asdict(erasure))
    else:
        for name, count in erasure.counts.items():
            print_line(f"{name:28} {count} erased")
        for note in erasure.notes:
            print_line(f"Note: {note}")
        print_line("the erasure is recorded")
    for left in erasure.left:
        tell(f"Left: {left}")
    if erasure.left:
        sys.exit(1)


def _ask(user: str, responses: int, conversations: int) -> None:
    if not sys.stdin.isatty():
        raise ThriftyError("this cannot be undone; say --yes where nobody can be asked")
    typer.confirm(
        f"Erase everything of the user {sanitize_line(user, 100)!r} ({responses} responses in "
        f"{conversations} conversations)? This cannot be undone.",
        abort=True,
        err=True,
    )


def run_subject_export(user: str, tenant: str | None) -> None:
    """Print all data of a person as JSON."""
    require_user(user)
    home = find_home()
    with open_home(home) as database:
        print_json(
            collect_person(
                database, home, user, tenant, who=Actor.from_user("thrifty subject-export").who
            )
        )
