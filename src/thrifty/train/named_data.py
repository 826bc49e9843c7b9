"""Rows by the name of what they are in: a file, or a data set that was built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from thrifty.data.augmentation import AS_IT_IS, Augmentation, read_augmentation
from thrifty.data.built import TEST, TRAIN, BuiltSet, open_set
from thrifty.errors import DataError, TrainingError
from thrifty.home import Home
from thrifty.train.rows import Method


@dataclass(frozen=True)
class NamedRows:
    """Files of rows, and what they are called."""

    name: str
    learned: list[Path]
    held_out: list[Path]
    """Those that a data set holds out; empty for a file."""
    augment: Augmentation = AS_IT_IS
    """What the data set's recipe says of other forms of its rows."""
    built: BuiltSet | None = None
    """The data set that they are of."""
    refresh: Callable[[], None] | None = None
    """Writes the files anew, from feedback."""


def find_rows(home: Home, named: str, method: Method) -> NamedRows:
    """The rows of a file, or of a built set: `chats@v3`, or `chats` for its newest version.

    Raises `TrainingError` where there is neither, or the set has rows of another kind.
    """
    path = Path(named).expanduser()
    if path.is_file():
        return NamedRows(path.name, [path.absolute()], [])
    if path.suffix or "/" in named:
        raise TrainingError(f"{named} is no file; rows are read from a file of JSON lines")
    try:
        built = open_set(home.datasets, named)
        built.check()
    except DataError as error:
        raise TrainingError(f"--data {named}: there is no such file, and {error}") from None
    if built.kind != method.value:
        fitting = f"; --method {built.kind} learns from it" if built.kind in set(Method) else ""
        raise TrainingError(
            f"{built.label} has {built.kind} rows, and --method {method} needs {method} rows{fitting}"
        )
    files = {
        split: [built.folder / one.path for one in built.files if one.split == split]
        for split in (TRAIN, TEST)
    }
    recipe = built.manifest.get("augment")
    augment = AS_IT_IS if recipe is None else read_augmentation(recipe)
    return NamedRows(built.label, files[TRAIN], files[TEST], augment, built)
