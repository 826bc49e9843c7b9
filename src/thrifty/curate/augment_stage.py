"""Where a build has a model make other forms of its rows: opens what that takes.

Answers are kept in `datasets/.work/NAME.answers` beyond the build, so that the next build of the
set asks for new rows alone. `thrifty forget` removes them with all unfinished work.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.artifacts import Store
from thrifty.curate.augmenting import Learned, Made, estimate, make_others
from thrifty.curate.leaks import load_index
from thrifty.curate.piece import count_tokens
from thrifty.curate.recipe import Recipe
from thrifty.curate.rows import Rows
from thrifty.curate.teacher import Teacher, find_place
from thrifty.curate.texts import join_compared
from thrifty.curate.vectors import make_opener
from thrifty.home import Home, make_private_folder
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress


def augment_rows(
    recipe: Recipe,
    name: str,
    work: Path,
    rows: Rows,
    split: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    home: Home,
    store: Store,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> Made:
    """What a model makes of the rows of a build. `split` says which rows are learned and which are
    held out. Blocks. Raises `DataError`.
    """
    wanted = recipe.augment
    if wanted is None or wanted.model is None or not wanted.methods:
        return Made()
    learned = _open_rows(recipe, work, rows, split)
    place = find_place(
        home, wanted.model, wanted.url_model, wanted.key_env, wanted.through, wanted.streams
    )
    folder = make_private_folder(work.parent / f"{name}.answers")
    teacher = Teacher(place, folder, on_progress, on_note)
    judge = None
    if isinstance(wanted.judge, str):
        other = find_place(home, wanted.judge, None, None, wanted.through, wanted.streams)
        judge = Teacher(other, folder, on_progress, on_note)
    embedder = (
        None if wanted.encoder is None else make_opener(store, on_progress)(wanted.encoder)
    )  # fmt: skip
    try:
        made = make_others(learned, wanted, teacher, embedder, on_note, judge)
        teacher.end()
        return made
    finally:
        if embedder is not None:
            embedder.close()


def estimate_rows(
    recipe: Recipe,
    work: Path,
    rows: Rows,
    split: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
) -> dict[str, Any]:
    """What `augment_rows` would ask for, without asking: see `augmenting.estimate`."""
    wanted = recipe.augment
    if wanted is None or not wanted.methods:
        return {"requests": 0, "tokens_read": 0, "tokens_written": 0, "cost": 0.0}
    return estimate(_open_rows(recipe, work, rows, split), wanted)


def _open_rows(
    recipe: Recipe,
    work: Path,
    rows: Rows,
    split: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
) -> Learned:
    begins, lengths, digests = (rows.column(name) for name in ("begin", "bytes", "digest"))
    folder, leaks = work / "tokenizer", work / "leaks.npz"
    tokenizer = TextTokenizer.load(folder) if folder.exists() else None
    most = recipe.length.most

    def read(row: int) -> dict[str, Any]:
        return rows.read_row(row, int(begins[row]), int(lengths[row]))

    def digest(row: int) -> str:
        return "".join(f"{part:016x}" for part in digests[row].tolist())

    def measure(row: dict[str, Any]) -> int | None:
        count = count_tokens(row, tokenizer, len(join_compared(row).split()))
        fits = (
            count is not None and count >= recipe.length.least and (most is None or count <= most)
        )
        return count if fits else None

    learned, held_out = (np.flatnonzero(one).tolist() for one in split)
    index = load_index(leaks) if leaks.exists() else None
    return Learned(recipe.kind, learned, held_out, read, digest, recipe.seed, index, measure)
