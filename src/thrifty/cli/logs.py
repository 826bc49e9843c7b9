"""`thrifty logs`: the request log on a terminal, one request with all that is known of it, and new
requests as they come.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from thrifty.cli.show import print_json, print_line, tell
from thrifty.db import Database
from thrifty.db.feedback import FeedbackFilter, list_feedback, read_history
from thrifty.db.request_queries import LogRow, RequestFilter, list_requests, read_texts
from thrifty.db.secrets import ID_SECRET, read_secret
from thrifty.errors import DatabaseError, ThriftyError
from thrifty.feedback.pages import describe_feedback
from thrifty.fleet.controller_note import open_home
from thrifty.gateway.app.request_pages import describe_request
from thrifty.home import find_home
from thrifty.observe.texts import describe_texts
from thrifty.openai.response_ids import EPOCH_S, ResponseIds, read_number
from thrifty.untrusted_text import sanitize_line

POLL_S = 0.5
LATE_S = 900.0
"""Rows are written when a request has ended, so that `--follow` looks back this long for them."""
MAX_SEEN = 100_000
MAX_PAGE = 1000
_COLUMNS = ("at", "id", "model", "version", "status", "tokens", "time", "cache", "tenant")


def run_logs(
    wanted: RequestFilter, *, limit: int, follow: bool, request: str | None, as_json: bool
) -> None:
    """Show requests, the newest last."""
    with open_home(find_home()) as database:
        try:
            ids = ResponseIds(read_secret(database, ID_SECRET), 0)
            if request is not None:
                _show_request(database, request, ids, as_json=as_json)
                return
            rows, _ = list_requests(database, wanted, limit=limit)
            if not as_json and (rows or follow):
                print_line(_join(_COLUMNS))
            for row in reversed(rows):
                _show_row(row, ids, as_json=as_json)
            if not rows and not follow:
                tell("No requests in the log.")
            if follow:
                _follow(database, wanted, {row["id"] for row in rows}, ids, as_json=as_json)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            sys.stdout = None


def _follow(
    database: Database, wanted: RequestFilter, seen: set[int], ids: ResponseIds, *, as_json: bool
) -> None:
    """Show rows as they are written, until interrupted; waits while the database is away."""
    begun_s = time.time()
    away = False
    while True:
        time.sleep(POLL_S)
        try:
            # The number of a response begins with its time.
            oldest_s = max(begun_s - LATE_S, time.time() - LATE_S)
            above = int((oldest_s - EPOCH_S) * 1000) << 22
            rows, _ = list_requests(database, wanted, above=above, limit=MAX_PAGE)
        except DatabaseError as error:
            if not away:
                tell(f"waiting: {error}")
            away = True
            database.recover()
            continue
        away = False
        fresh = [row for row in rows if row["id"] not in seen and _end_s(row) >= begun_s - POLL_S]
        for row in reversed(fresh):
            _show_row(row, ids, as_json=as_json)
        seen |= {row["id"] for row in rows}
        if len(seen) > MAX_SEEN:
            seen.intersection_update({row["id"] for row in rows})


def _end_s(row: LogRow) -> float:
    return float(row["at_s"]) + float(row["e2e_ms"]) / 1e3


def _show_row(row: LogRow, ids: ResponseIds, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(describe_request(row, ids)) + "\n")
        sys.stdout.flush()
        return
    tokens = f"{row['prompt_tokens'] or 0}+{row['completion_tokens'] or 0}"
    status = str(row["status"]) + (f" {row['error']}" if row["error"] else "")
    cells = (
        datetime.fromtimestamp(row["at_s"], UTC).strftime("%Y-%m-%d %H:%M:%S"),
        ids.write(row["id"], row["tenant"] or ""), row["deployment"] or "-",
        row["version"] or "-", status, tokens, f"{row['e2e_ms']:.0f} ms", row["cache"] or "-",
        row["tenant"] or "-",
    )  # fmt: skip
    print_line(_join(cells))


def _join(cells: tuple[str, ...]) -> str:
    widths = (19, 21, 16, 16, 14, 11, 10, 6, 0)
    shown = (
        sanitize_line(cell, 64).ljust(width) for cell, width in zip(cells, widths, strict=True)
    )
    return "  ".join(shown).rstrip()


def _show_request(database: Database, named: str, ids: ResponseIds, *, as_json: bool) -> None:
    number = read_number(named)
    wanted = (
        RequestFilter(number=number)
        if number is not None
        else RequestFilter(client_request_id=named)
    )
    rows, _ = list_requests(database, wanted, limit=20)
    if not rows:
        raise ThriftyError(
            f"the request log has no request {named[:100]!r}; it is written within a second, and "
            "kept for record.keep. IDs are x-thrifty-response-id, or your own x-request-id"
        )
    found = [_collect(database, row, ids) for row in rows]
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
        return
    for one in found:
        _print_request(one)


def _collect(database: Database, row: LogRow, ids: ResponseIds) -> dict[str, Any]:
    """All that is known of one request."""
    texts = read_texts(database, row["id"])
    said, _ = list_feedback(database, FeedbackFilter(response=row["id"]), limit=MAX_PAGE)
    history = read_history(database, [one.id for one in said if one.changes])
    found = describe_request(row, ids)
    return found | {
        **describe_texts(texts),
        "feedback": [
            describe_feedback(one, history.get(one.id, [])) | {"response_id": found["id"]}
            for one in said
        ],
    }


_APART = ("prompt", "answer", "texts_fault", "feedback", "object")
"""What of a request is not a line of its own."""


def _print_request(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for name, value in found.items():
        if name not in _APART and value not in (None, {}, ""):
            console.print(Text(f"{name:18} {sanitize_line(value, 400)}"))
    if found["prompt"] is None:
        console.print(Text(f"texts              {found.get('texts_fault', 'not recorded')}"))
    else:
        for message in [*found["prompt"], *(found["answer"] or ())]:
            console.print(Text(f"\n{message.get('role', '')}:", style="bold"))
            console.print(Text(_show_message(message)))
    for one in found["feedback"]:
        said = one["text"] if one["text"] is not None else one["value"]
        kind = one["kind"] + (f" {one['name']}" if one["name"] else "")
        console.print(Text(f"\nfeedback: {kind}: {sanitize_line(said, 400)}"))


def _show_message(message: dict[str, Any]) -> str:
    text = message.get("content") or ""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    shown = [f"[calls {call['name']}({call['arguments']})]" for call in calls]
    return "\n".join(
        sanitize_line(line, 10_000) for part in (text, *shown) for line in part.split("\n")
    )
