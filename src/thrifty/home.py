"""Where state lives: one folder, `THRIFTY_HOME`, default `~/.thrifty`. Nothing else is written.

models/       the artifact store                    thrifty.db   the embedded database
run/          the controller's pid and lock         logs/        one file for each process
files/        what batches read and write          data/        texts and questions
evaluations/  what references think of texts, and how candidates compare
trainings/    checkpoints of trainings that are not done
reports/      what `thrifty bench` and friends draw
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from thrifty.errors import ThriftyError

HOME_VARIABLE = "THRIFTY_HOME"


@dataclass(frozen=True)
class Home:
    """The paths below one `THRIFTY_HOME`. Building it touches no disk; the owners make folders."""

    root: Path

    @property
    def models(self) -> Path:
        """The artifact store."""
        return self.root / "models"

    @property
    def run(self) -> Path:
        """What tells that a controller runs, and which."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.root / "logs"

    @property
    def files(self) -> Path:
        """What was uploaded for batches, and what they made."""
        return self.root / "files"

    @property
    def data(self) -> Path:
        """Texts and questions that were fetched."""
        return self.root / "data"

    @property
    def evaluations(self) -> Path:
        """What references think of texts, and how candidates compare."""
        return self.root / "evaluations"

    @property
    def trainings(self) -> Path:
        """Where trainings keep their checkpoints until they are done."""
        return self.root / "trainings"

    @property
    def database(self) -> Path:
        """The embedded database's file."""
        return self.root / "thrifty.db"

    @property
    def database_url(self) -> str:
        """The embedded database, as a SQLAlchemy URL."""
        return f"sqlite:///{self.database}"


def find_home() -> Home:
    """The home that the environment names, as an absolute path. Raises `ThriftyError`."""
    named = os.environ.get(HOME_VARIABLE)
    try:
        root = Path(named).expanduser() if named else Path.home() / ".thrifty"
    except RuntimeError as error:
        raise ThriftyError(
            f"{named or '~'} cannot be found: {error} Set {HOME_VARIABLE} to an absolute path."
        ) from None
    return Home(root.absolute())


def make_private_folder(path: Path) -> Path:
    """Make `path` and its parents, each readable by its owner alone where it is new; return it."""
    try:
        # `mkdir(parents=True)` would leave the parents open to all.
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ThriftyError(
            f"cannot make the folder {path}: {error.strerror or error}; "
            f"set {HOME_VARIABLE} to a folder you can write to"
        ) from error
    return path
