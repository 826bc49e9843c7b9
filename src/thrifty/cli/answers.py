"""The answers of two models side by side, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from thrifty.cli.show import print_line
from thrifty.evaluate.answers_text import describe_faults, describe_share, quote

WIDTH = 100
"""The most columns: longer lines are hard to read."""


def show_answers(name: str, values: Mapping[str, Any]) -> None:
    """What a comparison of answers found, then the samples."""
    print_line(f"\nanswers, of {values['asked']} questions")
    print_line(f"  still right of those that the reference answers right: {describe_share(values)}")
    print_line(f"  {describe_faults(values)}\n")
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    for number, sample in enumerate(values["samples"], 1):
        console.print(Text(f"{number}. {quote(sample['question'], ())}", style="bold"))
        table = Table(box=None, pad_edge=False, expand=True, show_header=number == 1)
        for label in (values["beside"], name):
            table.add_column(Text(label), ratio=1, overflow="fold")
        table.add_row(
            Text(quote(sample["reference"], sample["reference_flags"])),
            Text(quote(sample["candidate"], sample["flags"])),
        )
        console.print(table)
