"""Files of a target, written to a folder that holds nothing else."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from thrifty.deploy.base import Files
from thrifty.errors import ThriftyError
from thrifty.files import write_atomically

NOTE = ".thrifty-render"
"""Lists what was written, so that the next time what is no longer needed goes."""


@dataclass(frozen=True)
class Written:
    """What a folder came to hold."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]
    diff: str
    """The changes, as a unified diff."""


def write_files(files: Files, folder: Path, *, dry_run: bool = False) -> Written:
    """Bring `folder` in line with `files`. What it holds of others is never touched. Raises
    `ThriftyError`.
    """
    before = _read_before(folder)
    added = tuple(sorted(set(files) - set(before)))
    removed = tuple(sorted(set(before) - set(files)))
    changed = tuple(
        name for name in sorted(set(files) & set(before)) if files[name] != before[name]
    )
    same = tuple(sorted(set(files) - set(added) - set(changed)))
    for name in added:
        if (folder / name).exists():
            raise ThriftyError(
                f"{folder / name} was not written by `thrifty deploy render`; choose an empty folder"
            )
    if not dry_run:
        _write(files, folder, removed)
    return Written(added, changed, removed, same, _make_diff(before, files))


def _write(files: Files, folder: Path, removed: tuple[str, ...]) -> None:
    try:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
        for name in removed:
            (folder / name).unlink(missing_ok=True)
        write_atomically(folder / NOTE, "".join(f"{name}\n" for name in sorted(files)))
    except OSError as error:
        raise ThriftyError(f"cannot write to {folder}: {error.strerror or error}") from None


def _read_before(folder: Path) -> dict[str, str]:
    """What was written the last time, as far as it is still there."""
    note = folder / NOTE
    if not note.is_file():
        return {}
    names = note.read_text(encoding="utf-8").split("\n")
    found = {}
    for name in names:
        path = (folder / name).resolve()
        if name and path.is_relative_to(folder.resolve()) and path.is_file():
            found[name] = path.read_text(encoding="utf-8")
    return found


def _make_diff(before: Files, after: Files) -> str:
    parts = []
    for name in sorted(set(before) | set(after)):
        old = before.get(name, "").splitlines(keepends=True)
        new = after.get(name, "").splitlines(keepends=True)
        parts += list(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}"))
    return "".join(parts)
