"""`thrifty data`: texts and questions that come as packages."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.artifacts import Store
from thrifty.cli.show import print_json, print_line, print_table, show_progress
from thrifty.data import SETS, fetch_set
from thrifty.home import find_home


def run_list(*, as_json: bool) -> None:
    """List the sets."""
    home = find_home()
    found = [
        {
            "name": name,
            "what": one.what,
            "licence": one.licence,
            "from": one.origin,
            "fetched": (home.data / f"{name}{one.suffix}").exists(),
        }
        for name, one in SETS.items()
    ]
    if as_json:
        print_json({"sets": found})
        return
    print_table(
        ("name", "what", "licence", "from", "here"),
        [
            (f["name"], f["what"], f["licence"], f["from"], "yes" if f["fetched"] else "")
            for f in found
        ],
    )


def run_fetch(names: Sequence[str]) -> None:
    """Fetch sets."""
    home = find_home()
    for name in names:
        with show_progress() as on_progress:
            path = fetch_set(name, home.data, Store(home.models), on_progress)
        print_line(str(path))
