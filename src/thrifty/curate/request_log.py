"""The request log as a source: judged answers, copied to a file once, so that a build that goes on
reads what it began with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from thrifty.curate.recipe import Source
from thrifty.db import Database
from thrifty.db.subjects import open_subjects
from thrifty.errors import DataError
from thrifty.feedback.export import REASONS, Chosen, Form, Skipped, export_rows
from thrifty.files import replace_atomically

ANY = "*"


def write_snapshot(database: Database, source: Source, kind: str, path: Path) -> None:
    """Write the training rows of the log that a source names. Raises `DataError` if there are
    none, with what kept responses from becoming rows.
    """
    if kind == "text":
        raise DataError("the request log holds conversations; take the kind sft, dpo or kto")
    chosen = Chosen(
        tenant=source.tenant,
        deployment=None if source.log == ANY else source.log,
        version=source.version,
    )
    skipped = Skipped()
    count = 0
    with replace_atomically(path, mode=0o600) as temporary, temporary.open("w") as file:
        for row in export_rows(database, Form(kind), open_subjects(database), skipped, chosen):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        os.unlink(path)
        why = "; ".join(f"{number} {REASONS[reason]}" for reason, number in skipped.counts.items())
        raise DataError(
            f"the request log gives no {kind} row for {source.log!r}"
            + (f": responses {why}" if why else "; nobody has judged an answer, see docs/api.md")
        )
