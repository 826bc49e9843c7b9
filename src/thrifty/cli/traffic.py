"""`thrifty traffic`: the shares of a deployment's versions."""

from __future__ import annotations

from typing import Any

from thrifty.cli.show import err, print_json, print_line, print_table, tell
from thrifty.control.service_api import Actor, read_traffic, set_traffic
from thrifty.db.releases import read_active
from thrifty.errors import ControlError
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.service import is_running


def run_traffic(
    deployment: str, weights: list[str], *, why: str | None, force: bool, as_json: bool
) -> None:
    """Show the weights, or set those that are given as LABEL=WEIGHT."""
    wanted = parse_weights(weights)
    home = find_home()
    with open_home(home) as database:
        if wanted:
            before = read_traffic(database, deployment)
            actor = Actor.from_user("thrifty traffic", why or "")
            ended = [one.id for one in read_active(database, deployment)] if force else []
            report = set_traffic(database, deployment, wanted, actor, force=force)
            for release_id in ended:
                tell(f"Release {release_id} has ended: the weights were set by hand.")
            if report["versions"] == before["versions"]:
                tell("The weights were so already: nothing changed, and nothing was recorded.")
        else:
            report = read_traffic(database, deployment)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if wanted and not is_running(home):
        err.print("No service runs here; 'thrifty up' starts it with these weights.")


def parse_weights(texts: list[str]) -> dict[str, float]:
    """`["a=90", "b=10"]` as numbers by label. Raises `ControlError`."""
    found: dict[str, float] = {}
    for text in texts:
        label, equals, number = text.rpartition("=")
        try:
            weight = float(number) if equals and label else None
        except ValueError:
            weight = None
        if weight is None:
            raise ControlError(f"{text!r} is not LABEL=WEIGHT; write it as in a=90 b=10")
        if label in found:
            raise ControlError(f"the weight of {label!r} is given twice; keep one")
        found[label] = weight
    return found


def _show(report: dict[str, Any]) -> None:
    rows = [
        (one["label"], f"{one['weight']:g}", f"{one['share']:.1%}", f"{one['shadow']:g}")
        for one in report["versions"]
    ]
    print_line(report["deployment"])
    print_table(("version", "weight", "share", "shadow"), rows)
