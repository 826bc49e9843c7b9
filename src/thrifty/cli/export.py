"""`thrifty export`: records in a file for other programs."""

from __future__ import annotations

from pathlib import Path

from thrifty.cli.show import print_json, tell
from thrifty.control.service_api import Actor
from thrifty.db.erasures import note_export
from thrifty.db.secrets import ID_SECRET, read_secret
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.observe.record_files import check_export, write_records
from thrifty.observe.rollups.roll import open_roller
from thrifty.openai.response_ids import ResponseIds

TELL_ROWS = 200_000
"""How often progress is told."""


def run_export(
    what: str, out: Path, since_s: float | None, tenant: str | None, *, as_json: bool
) -> None:
    """Write records of one kind."""
    kind = check_export(what, out, tenant)

    def note(count: int) -> None:
        if count % TELL_ROWS == 0:
            tell(f"{count:,} rows written")

    with open_home(find_home()) as database:
        open_roller(database).catch_up()
        ids = ResponseIds(read_secret(database, ID_SECRET), 0)
        # Before it is written, so that a killed export is known, too.
        who = Actor.from_user("thrifty export").who
        note_export(database, out, what, who=who, of_persons=kind.of_persons)
        count = write_records(
            database, kind, out, ids, since_s=since_s, tenant=tenant, on_count=note
        )
    if as_json:
        print_json({"path": str(out.absolute()), "what": what, "rows": count})
        return
    tell(f"{count:,} rows in {out}.")
