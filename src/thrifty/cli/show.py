"""Printing: tables and messages on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from thrifty.types import OnProgress
from thrifty.types import Progress as Step
from thrifty.units import format_bytes

err = Console(stderr=True, highlight=False, emoji=False, markup=False)
UNBOUNDED_COLUMNS = 1_000_000
"""The width of output that no terminal shows: nothing is cut or broken."""

_VERBS = {
    "resolve": "Looking up the model",
    "find": "Looking it up",
    "resolve_packages": "Looking up packages",
    "install": "Installing",
    "download": "Downloading",
    "upload": "Uploading",
    "copy": "Copying",
    "unpack": "Unpacking",
    "convert": "Preparing for the engine",
    "store": "Storing",
    "check": "Checking",
    "load": "Loading the model",
    "batch": "Running the batch",
    "seal": "Encrypting texts",
    "reference": "Running the reference",
    "evaluate": "Running the candidate",
    "answer": "Answering questions",
    "ask": "Asking questions",
    "calibrate": "Reading calibration text",
    "count": "Counting tokens",
    "quantize": "Quantizing",
    "write": "Writing",
    "read back": "Reading it back",
    "sensitivity": "Measuring each matrix",
    "forms": "Trying forms",
    "judge": "Comparing recipes",
    "speed_benchmark": "Measuring the speed",
    "train": "Training",
    "read": "Reading rows",
    "fit": "Measuring the replica",
    "simulate": "Simulating",
    "curate": "Reading and cleaning",
    "exact duplicates": "Looking for duplicates",
    "near duplicates": "Looking for near-duplicates",
    "embed": "Embedding rows",
}
PLAIN_INTERVAL_S = 2.0


def print_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def print_line(text: str = "") -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """One line on stderr, which is not broken."""
    err.print(text, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout, as wide as its contents. What cells hold is text, never markup."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    make_console().print(table)


def make_console() -> Console:
    """Stdout: as wide as the terminal, or without a bound where there is none."""
    width = None if sys.stdout.isatty() else UNBOUNDED_COLUMNS
    return Console(highlight=False, emoji=False, markup=False, width=width)


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """A function that shows steps as bars on a terminal, and as a line now and then elsewhere."""
    if not err.is_terminal:
        yield _PlainProgress().show
        return
    with Progress(
        TextColumn("{task.description:<26}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        console=err,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: Step) -> None:
            if step.step not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1)
                tasks[step.step] = bars.add_task(_say(step), amount="")
            bars.update(
                tasks[step.step],
                completed=step.done,
                total=step.total or None,
                amount=_amount(step),
            )

        yield show
        for task in tasks.values():
            bars.update(task, total=1, completed=1)


def describe_progress(step: Step) -> str:
    """A step in words, and how far it is."""
    return f"{_say(step)} {_amount(step)}".rstrip()


class _PlainProgress:
    def __init__(self) -> None:
        self._step = self._line = ""
        self._shown_s = 0.0

    def show(self, step: Step) -> None:
        now_s = time.monotonic()
        ended = step.total > 0 and step.done >= step.total
        if step.step == self._step and now_s - self._shown_s < PLAIN_INTERVAL_S and not ended:
            return
        self._step, self._shown_s = step.step, now_s
        line = describe_progress(step)
        if line != self._line:
            self._line = line
            err.print(line)


def _say(step: Step) -> str:
    """A step in words: `prune: Comparing recipes`, where it is one of a stage."""
    stage, colon, name = step.step.rpartition(": ")
    return f"{stage}{colon}{_VERBS.get(name, name)}"


def _amount(step: Step) -> str:
    if not step.total:
        return ""
    if step.unit == "bytes":
        return f"{format_bytes(step.done)} of {format_bytes(step.total)}"
    return f"{step.done:g} of {step.total:g} {step.unit}"
