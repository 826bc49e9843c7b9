"""`thrifty quality`: what versions answer to canary questions."""

from __future__ import annotations

from datetime import UTC, datetime

from thrifty.cli.show import print_json, print_line, print_table
from thrifty.db.quality import read_answers
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.quality.report import VersionQuality, summarize


def run_quality(deployment: str | None, *, as_json: bool) -> None:
    """Print the figures of each version."""
    with open_home(find_home()) as database:
        found = summarize(read_answers(database, deployment))
    if as_json:
        print_json({"versions": [one.as_dict() for one in found]})
        return
    if not found:
        print_line("No canary question was asked yet; 'quality' in the spec says which to ask.")
        return
    columns = (
        "deployment", "version", "revision", "right", "share", "95%", "lost", "gained", "change",
        "faults", "rounds", "last",
    )  # fmt: skip
    print_table(columns, [_make_row(one) for one in found])


def _make_row(one: VersionQuality) -> tuple[str, ...]:
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(one.faults.items()))
    share = "" if one.share is None else f"{one.share:.1%}"
    when = datetime.fromtimestamp(one.last_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return (
        one.deployment, one.version, one.revision[:8], f"{one.right} of {one.asked}", share,
        f"{one.low:.1%} to {one.high:.1%}", str(one.lost), str(one.gained), one.change,
        one.failed or faults, str(one.rounds), when,
    )  # fmt: skip
