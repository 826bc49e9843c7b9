"""Folders of trainings that did not end: whose they are, and which nobody goes on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thrifty.artifacts.disk import try_lock_file
from thrifty.files import write_atomically
from thrifty.home import Home

NOTE, FAILED = "request.json", "failed"
LOCK = "lock"
CONTENTS = ("data_sha256", "held_out_sha256")
"""Keys of a recipe that change with the rows in the files."""


def find_folder(home: Home, made_from: str, recipe: dict[str, Any]) -> Path:
    """The folder of a training of a model by a recipe."""
    return home.trainings / _digest(made_from, recipe)[:24]


def is_begun(folder: Path) -> bool:
    """Whether a training got so far that another one would lose something."""
    return (folder / "state.json").exists() or (folder / "trials").exists()


def can_go_on(folder: Path) -> bool:
    """Whether a training was stopped that may still come to a model."""
    return is_begun(folder) and not (folder / FAILED).exists()


def note_failure(folder: Path) -> None:
    """Note that a training came to its end without a model, as it would again."""
    (folder / FAILED).touch()


def claim_folder(
    folder: Path, made_from: str, recipe: dict[str, Any], out: str, files: Sequence[Path]
) -> None:
    """Note whose a folder is, and remove those of trainings of the same name, settings and files
    that began when other rows were in the files. Those that run stay.
    """
    settings = {name: value for name, value in recipe.items() if name not in CONTENTS}
    same = _digest(made_from, settings, out, [str(path.absolute()) for path in files])
    for note in folder.parent.glob(f"*/{NOTE}"):
        if note.parent != folder and _read(note) == same:
            with try_lock_file(note.parent / LOCK) as free:
                if free:
                    shutil.rmtree(note.parent, ignore_errors=True)
    write_atomically(folder / NOTE, json.dumps(same))


def empty_folder(folder: Path) -> None:
    """Remove all but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
