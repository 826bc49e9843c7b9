"""`augment: auto`: short trainings with and without each augmentation, and what is kept of them.

An item is a held-out prompt; its score is the mean loss of its examples, with the sign turned.
Repetitions differ by their seed, which decides the order of rows and the forms that are shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from thrifty.data.augmentation import Augmentation, list_candidates
from thrifty.errors import DataError, TrainingError
from thrifty.train.gain import Choice, keep_what_gains
from thrifty.train.rows import Method, Row, parse_row

REPEATS = 2

Try = Callable[[Augmentation | None, int], dict[str, list[float]]]
"""Trains and returns the losses of held-out examples by their prompt's key."""


def choose_augmentation(
    files: Iterable[Path],
    method: Method,
    wanted: Augmentation,
    train: Try,
    on_note: Callable[[str], None] = lambda text: None,
) -> Choice[Augmentation]:
    """Try what is wanted and keep what gains; tells so. Blocks for as long as the trials take.
    Raises `TrainingError` where too few prompts are held out to tell.
    """
    candidates = list_candidates(wanted, list_made(files, method))
    if not candidates:
        raise TrainingError(
            "there is nothing to try: the data hold nothing that models made, and noise was not "
            "asked for; take --augment auto, or --augment none"
        )
    on_note(
        f"augment: trying {', '.join(candidates)} against plain training: "
        f"{REPEATS * (1 + len(candidates))} short trainings"
    )

    def measure(augmentation: Augmentation | None, repeat: int) -> list[float]:
        losses = train(augmentation, repeat)
        return [-sum(found) / len(found) for _, found in sorted(losses.items())]

    try:
        choice = keep_what_gains(candidates, measure, repeats=REPEATS)
    except DataError as error:
        raise TrainingError(f"augment: auto: {error}; or take --augment none") from None
    for trial in choice.trials:
        what = "kept" if trial.kept else "dropped" if trial.low <= 0 else "dropped for a better one"
        on_note(
            f"augment: {trial.name} gains {trial.gain:+.4f} ({trial.low:+.4f} to "
            f"{trial.high:+.4f}) in loss on {trial.items} held-out prompts: {what}"
        )
    return choice


def list_made(files: Iterable[Path], method: Method) -> set[str]:
    """The methods by which models made something in files of rows."""
    found: set[str] = set()
    for path in files:
        with path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                if b'"made"' not in raw:
                    continue
                row = parse_row(raw, line, method)
                if isinstance(row, Row):
                    record = json.loads(raw)
                    found |= {one["method"] for one in record.get("made") or () if "method" in one}
                    found |= {row.made} - {""}
    return found
