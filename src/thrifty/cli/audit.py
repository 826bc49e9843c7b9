"""`thrifty audit`: list administrative acts, check that none was tampered with, print the head."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from thrifty.cli.show import print_json, print_line, print_table, tell
from thrifty.db.audit import Head, list_acts, parse_head, verify_audit
from thrifty.errors import ThriftyError
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.untrusted_text import sanitize_line

MAX_SHOWN = 100


def run_list(*, limit: int, who: str | None, as_json: bool) -> None:
    """List acts, the newest first."""
    with open_home(find_home()) as database:
        acts = list_acts(database, limit, who)
    if as_json:
        print_json([vars(one) | {"details": json.loads(one.details)} for one in acts])
        return
    if not acts:
        print_line("No administrative acts.")
        return
    rows = []
    for one in acts:
        at = datetime.fromtimestamp(one.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        rows.append((one.id, at, one.act, one.actor, sanitize_line(one.details, MAX_SHOWN)))
    print_table(("number", "at", "act", "actor", "details"), rows)


def run_verify(kept: str | None, *, as_json: bool) -> None:
    """Check the chain; exits with 1 where it is broken."""
    with open_home(find_home()) as database:
        verdict = verify_audit(database, None if kept is None else _read_head(kept))
    if as_json:
        print_json(
            {"whole": verdict.fault is None, "fault": verdict.fault, "head": str(verdict.head)}
        )
    elif verdict.fault is None:
        print_line(f"The audit log is whole: {verdict.head.count} entries.")
    else:
        tell(f"The audit log is broken: {verdict.fault}.")
    if verdict.fault is not None:
        sys.exit(1)


def run_head() -> None:
    """Print the head, to be kept elsewhere."""
    with open_home(find_home()) as database:
        verdict = verify_audit(database)
    if verdict.fault is not None:
        raise ThriftyError(f"the audit log is broken: {verdict.fault}")
    print_line(str(verdict.head))


def _read_head(text: str) -> Head:
    try:
        return parse_head(text)
    except ValueError as error:
        raise ThriftyError(str(error)) from None
