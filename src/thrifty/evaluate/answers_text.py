"""A comparison of answers in words, from the values that are recorded with a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.untrusted_text import sanitize_line

QUOTED_CHARACTERS = 240
QUOTED_SAMPLES = 3
_FAULTS = ("empty", "loops", "ignored")


def describe_share(values: Mapping[str, Any]) -> str:
    """What is still right, with its share and 95% interval: `41 of 75: 54.7% (43.5% to 65.4%)`."""
    share = values["still_right_share"]
    if share is None:
        return "0 of 0"
    return (
        f"{values['still_right']} of {values['reference_right']}: {share['share']:.1%} "
        f"({share['low']:.1%} to {share['high']:.1%})"
    )


def describe_faults(values: Mapping[str, Any]) -> str:
    """How many answers show each fault, and how many of the reference's do."""
    counts = ", ".join(f"{values[kind]} {kind}" for kind in _FAULTS)
    known = ", ".join(str(values["reference_faults"][kind]) for kind in _FAULTS)
    return f"{counts} of {values['asked']} (the reference: {known})"


def quote(text: str, flags: Sequence[str]) -> str:
    """An answer as one printable line, with its flags in front, cut to a readable length."""
    marks = "".join(f"[{flag}] " for flag in flags)
    line = sanitize_line(" ".join(text.split()), QUOTED_CHARACTERS + 1)
    return marks + (line[:QUOTED_CHARACTERS] + "..." if len(line) > QUOTED_CHARACTERS else line)


def summarize_answers(name: str, values: Mapping[str, Any]) -> list[str]:
    """What someone who asked for a smaller model should see of it, in a few lines."""
    lines = [
        f"{name}: still right of what {values['beside']} answers right, "
        f"{describe_share(values)}; {describe_faults(values)}"
    ]
    samples = values["samples"]
    step = max(1, len(samples) // QUOTED_SAMPLES)
    for sample in samples[::step][:QUOTED_SAMPLES]:
        lines += [
            f"  Q: {quote(sample['question'], ())}",
            f"     {values['beside']}: {quote(sample['reference'], sample['reference_flags'])}",
            f"     {name}: {quote(sample['candidate'], sample['flags'])}",
        ]
    return lines
