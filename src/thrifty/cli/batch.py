"""`thrifty batch`: have a file of requests worked off, with a bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thrifty.batches.client import OnProgress, run_batch
from thrifty.cli.show import err, print_json, print_line, show_progress
from thrifty.errors import BatchError
from thrifty.fleet.controller_note import read_controller_note
from thrifty.home import find_home
from thrifty.types import Progress

DEFAULT_URL = "http://127.0.0.1:8080"


def run_run(
    source: Path,
    output: Path,
    errors: Path | None,
    *,
    url: str | None,
    key: str | None,
    window: str,
    as_json: bool,
) -> None:
    """Run a batch to its end and say what came of it."""
    errors = errors or output.with_name(f"{output.stem}.errors{output.suffix}")
    try:
        with _show_batch() as on_progress:
            batch = run_batch(
                source, output, errors, url=url or _find_url(), key=key, window=window,
                on_progress=on_progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise BatchError(
            "stopped waiting; the batch goes on. The same command takes it up again."
        ) from None
    counts = batch["request_counts"]
    if as_json:
        has_errors = batch["error_file_id"] is not None
        print_json(
            {"batch": batch, "output": str(output), "errors": str(errors) if has_errors else None}
        )
    else:
        print_line(
            f"{batch['status']}: {counts['completed']} of {counts['total']} lines answered ({output})"
            + (f", {counts['failed']} not ({errors})" if counts["failed"] else "")
        )
    if batch["status"] != "completed":
        reasons = [entry["message"] for entry in (batch["errors"] or {}).get("data", [])]
        raise BatchError(
            f"the batch is {batch['status']}{': ' if reasons else ''}{' '.join(reasons)}"
        )


def _find_url() -> str:
    """The gateway of this home, where one runs."""
    note = read_controller_note(find_home())
    return note.url if note is not None and note.alive and note.url else DEFAULT_URL


@contextmanager
def _show_batch() -> Iterator[OnProgress]:
    with show_progress() as show:
        last = None

        def tell(batch: dict[str, Any]) -> None:
            nonlocal last
            counts = batch["request_counts"]
            done = counts["completed"] + counts["failed"]
            if batch["status"] != last and not err.is_terminal:
                err.print(f"{batch['id']}: {batch['status']}")
            last = batch["status"]
            show(Progress("batch", done, counts["total"], "lines"))

        yield tell
