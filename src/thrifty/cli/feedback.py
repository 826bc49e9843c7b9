"""`thrifty feedback`: list what people said of answers, and write training rows from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from thrifty.cli.show import err, print_json, print_line, print_table, tell
from thrifty.control.service_api import Actor
from thrifty.db import Database
from thrifty.db.erasures import note_export
from thrifty.db.feedback import FeedbackFilter, FeedbackRow, list_feedback, read_history
from thrifty.db.secrets import ID_SECRET, read_secret
from thrifty.db.subjects import open_subjects
from thrifty.errors import ThriftyError
from thrifty.feedback.export import REASONS, Chosen, Form, Skipped, export_rows
from thrifty.feedback.pages import describe_feedback
from thrifty.files import replace_atomically
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.openai.response_ids import ResponseIds
from thrifty.untrusted_text import sanitize_line

MAX_SHOWN = 60


def run_list(wanted: FeedbackFilter, *, limit: int, as_json: bool) -> None:
    """List feedback, the newest first."""
    with open_home(find_home()) as database:
        rows, more = list_feedback(database, wanted, limit=limit)
        ids = ResponseIds(read_secret(database, ID_SECRET), 0)
        history = read_history(database, [row.id for row in rows if row.changes])
    if as_json:
        described = [_describe(row, history.get(row.id, []), ids) for row in rows]
        print_json({"data": described, "has_more": more})
        return
    if not rows:
        print_line("No feedback. How it is given: POST /v1/feedback, see docs/api.md")
        return
    print_table(
        ("at", "kind", "value", "text", "about", "version", "user"),
        [_show_row(row, ids) for row in rows],
    )
    if more:
        tell("There is more: --limit")


def _describe(row: FeedbackRow, history: list[Any], ids: ResponseIds) -> dict[str, Any]:
    response = ids.write(row.response, row.tenant) if row.response is not None else None
    return describe_feedback(row, history) | {"response_id": response}


def _show_row(row: FeedbackRow, ids: ResponseIds) -> tuple[str, ...]:
    at = datetime.fromtimestamp(row.updated_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    about = row.conversation_id or ids.write(row.response or 0, row.tenant)
    value = "" if row.value is None else f"{row.value:g}"
    text = sanitize_line(row.text or "", MAX_SHOWN)
    user = sanitize_line(row.user or "", MAX_SHOWN)
    return at, row.kind, value, text, about, row.version or "", user


def run_export(form: str, out: Path | None, chosen: Chosen) -> None:
    """Write training rows as JSON lines; what gives none is said on stderr."""
    try:
        wanted = Form(form)
    except ValueError:
        raise ThriftyError(
            f"{form!r} is not a form of training rows; take {', '.join(Form)}"
        ) from None
    skipped = Skipped()
    with open_home(find_home()) as database:
        lines = _write_lines(database, wanted, skipped, chosen)
        # Before it is written, so that a killed export is known, too.
        note_export(database, out, form, who=Actor.from_user("thrifty feedback export").who)
        count = _write_to_stdout(lines) if out is None else _write_file(out, lines)
    tell(f"{count} rows{f' in {out}' if out is not None else ''}.")
    for reason, number in sorted(skipped.counts.items(), key=lambda item: -item[1]):
        tell(f"  no row: {number} {'response' if number == 1 else 'responses'} {REASONS[reason]}")


def _write_lines(database: Database, form: Form, skipped: Skipped, chosen: Chosen) -> Iterator[str]:
    for row in export_rows(database, form, open_subjects(database), skipped, chosen):
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _write_to_stdout(lines: Iterator[str]) -> int:
    count = 0
    try:
        for line in lines:
            sys.stdout.write(line)
            count += 1
        sys.stdout.flush()
    except BrokenPipeError:
        err.quiet = True  # such as `| head`
        sys.stdout = None
    return count


def _write_file(out: Path, lines: Iterator[str]) -> int:
    count = 0
    try:
        with replace_atomically(out, mode=0o600) as temporary, temporary.open("w") as file:
            for line in lines:
                file.write(line)
                count += 1
    except OSError as error:
        raise ThriftyError(f"cannot write {out}: {error.strerror or error}") from None
    return count
