"""What the function's image holds: the store with the prepared model, and a note of what to serve.

The image is read-only and Lambda runs it as a user of its own, so that everything must be readable
by all, and nothing can be written but /tmp.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from thrifty.engines.base import Served
from thrifty.errors import EngineError, ThriftyError
from thrifty.files import write_atomically
from thrifty.home import Home

FILE = "lambda.json"


def write_baked(root: Path, served: Served) -> Path:
    """Write the note into a home, and open the home to all readers. Raises `ThriftyError`."""
    database = Home(root).database
    if database.exists():
        raise ThriftyError(
            f"{root} has a service's database, and baking opens the whole home to all readers; set "
            "THRIFTY_HOME to a new folder"
        )
    note = root / FILE
    try:
        write_atomically(note, served.to_json().decode())
        for path in [root, *root.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644 | (path.stat().st_mode & 0o111))
    except OSError as error:
        raise ThriftyError(f"cannot write {error.filename}: {error.strerror}") from None
    return note


def fetch_ahead(folder: Path) -> None:
    """Have the kernel read the model's files from now on, all at once. The engine maps them, and would
    wait for one page after the other. Returns at once.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def read_baked(root: Path) -> Served:
    """What the function serves. Raises `EngineError`."""
    note = root / FILE
    try:
        return Served.from_json(note.read_bytes())
    except OSError as error:
        raise EngineError(
            f"cannot read {note}: {error.strerror}; the image must be built with `thrifty lambda bake`"
        ) from None
    except msgspec.DecodeError as error:
        raise EngineError(
            f"{note} is not of this release ({error}); build the image anew"
        ) from None
