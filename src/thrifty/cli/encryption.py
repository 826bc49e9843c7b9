"""`thrifty encryption`: keys of recorded texts, which texts they have encrypted, sealing anew."""

from __future__ import annotations

import sys
from pathlib import Path

from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.control.service_api import Actor
from thrifty.db import Database
from thrifty.db.sealed_text import KeySource, make_key, read_keys
from thrifty.db.text_keys import PLAIN, count_texts, list_sources, reseal
from thrifty.errors import TextKeyError, ThriftyError
from thrifty.files import write_atomically
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.types import Progress


def run_new_key(path: Path | None) -> None:
    """Add a key to a file, or print one."""
    line = make_key()
    if path is None:
        print_line(line)
        return
    source = KeySource("file", str(path.expanduser().absolute()))
    known = ""
    if path.exists():
        read_keys(source)  # a file that holds something else is not ours to change
        known = path.read_text()
        known += "" if known.endswith("\n") else "\n"
    try:
        write_atomically(path, f"{known}{line}\n", mode=0o600)
    except OSError as error:
        raise ThriftyError(f"{path} cannot be written: {error.strerror}") from None
    key = read_keys(source)[-1]
    print_line(
        f"The key {key.id} was added to {path} and writes from now on. Keep a copy of the file:"
    )
    print_line("texts whose key is lost cannot be read by anybody.")


def run_status(*, as_json: bool) -> None:
    """Show where keys are and what they have encrypted; exits with 1 where one is missing."""
    with open_home(find_home()) as database:
        found = _describe(database)
    if as_json:
        print_json(found)
    else:
        _print(found)
    if found["fault"] or found["missing"]:
        sys.exit(1)


def _describe(database: Database) -> dict[str, object]:
    keys: dict[str, str] = {}
    faults: dict[str, str] = {}
    writer, fault = None, None
    for source, writes in list_sources(database):
        try:
            read = read_keys(source)
        except TextKeyError as error:
            faults[str(source)] = str(error)
            fault = str(error) if writes else fault
            continue
        for key in read:
            keys.setdefault(key.id, str(source))
        if writes:
            writer = read[-1].id
    counts = count_texts(database)
    idents = [one for one in dict.fromkeys([*keys, *counts]) if one != PLAIN]
    return {
        "writes": writer,
        "fault": fault,
        "plain_texts": counts.get(PLAIN, 0),
        "keys": [
            {"id": one, "source": keys.get(one), "texts": counts.get(one, 0)} for one in idents
        ],
        "missing": [one for one in idents if one not in keys],
        "unreadable_sources": faults,
    }


def _print(found: dict[str, object]) -> None:
    if found["writes"] is None and not found["fault"]:
        print_line("Texts are written plain; 'record.encrypt' in the spec encrypts them.")
    keys = found["keys"]
    assert isinstance(keys, list)
    rows = [
        (
            one["id"], one["source"] or "missing", str(one["texts"]),
            "writes" if one["id"] == found["writes"] else "",
        )
        for one in keys
    ]  # fmt: skip
    if rows:
        print_table(("key", "from", "texts", ""), rows)
    print_line(f"Plain texts: {found['plain_texts']}")
    faults = found["unreadable_sources"]
    assert isinstance(faults, dict)
    for fault in faults.values():
        tell(f"{fault[0].upper()}{fault[1:]}.")
    missing = found["missing"]
    assert isinstance(missing, list)
    if missing:
        tell(
            f"Texts of the {'key' if len(missing) == 1 else 'keys'} {', '.join(missing)} cannot be "
            "read. Put the key back into one of the places above."
        )


def run_reseal(*, as_json: bool) -> None:
    """Encrypt all texts with the newest key; exits with 1 where some could not be read."""
    who = Actor.from_user("thrifty encryption reseal").who
    with open_home(find_home()) as database, show_progress() as on_progress:
        counts = count_texts(database)
        database.text_keys.refresh(within_s=0.0)
        total = sum(counts.values()) - counts.get(database.text_keys.writer or "", 0)
        done = reseal(
            database, who, lambda count: on_progress(Progress("seal", count, total, "texts"))
        )
    if as_json:
        print_json(
            {"sealed": done.sealed, "unreadable": done.unreadable, "missing": sorted(done.keys)}
        )
    else:
        print_line(f"{done.sealed} texts were encrypted with the newest key.")
        if done.unreadable:
            named = f" of {', '.join(sorted(done.keys))}" if done.keys else ""
            tell(f"{done.unreadable} texts{named} cannot be read and stay as they are.")
    if done.unreadable:
        sys.exit(1)
