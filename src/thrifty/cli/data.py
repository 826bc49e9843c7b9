"""`thrifty data list|fetch`: texts and questions that come as packages, and what was built."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.artifacts import Store
from thrifty.cli.data_sets import list_built
from thrifty.cli.show import print_json, print_line, print_table, show_progress
from thrifty.data import SETS, fetch_set
from thrifty.home import find_home


def run_list(*, as_json: bool) -> None:
    """List the sets that can be fetched, and those that were built."""
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
    built = list_built()
    if as_json:
        print_json({"sets": found, "built": built})
        return
    if built:
        print_table(
            ("built", "version", "kind", "train", "test", "from"),
            [
                (b["name"], b["version"], b["kind"], b["train"], b["test"], ", ".join(b["sources"]))
                for b in built
            ],
        )
        print_line()
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
