"""The folder for all state: `THRIFTY_HOME`, default `~/.thrifty`. Nothing else is written.

models/       the artifact store                    thrifty.db   the embedded database
run/          the controller's pid and lock         logs/        one file for each process
files/        inputs and outputs of batches         data/        data sets
evaluations/  recorded predictions of references, and results of candidates
trainings/    checkpoints of trainings that may go on
optimizations/  finished steps of searches
gates/        signed records of gates, and the key that signs them
datasets/     data sets that were built, and builds that may go on
deployments/  what was applied elsewhere by client programs, and how to take it away
engines/      environments of engines that install themselves on first use
database.json where the data is, if it is not in thrifty.db
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from thrifty.errors import ThriftyError

HOME_VARIABLE = "THRIFTY_HOME"


@dataclass(frozen=True)
class Home:
    """The paths below one `THRIFTY_HOME`. It creates no folders; their owners do."""

    root: Path

    @property
    def models(self) -> Path:
        """The artifact store."""
        return self.root / "models"

    @property
    def run(self) -> Path:
        """Identifies the running controller."""
        return self.root / "run"

    @property
    def recorder_socket(self) -> Path:
        """Where gateway workers reach the recorder."""
        return self.run / "recorder.sock"

    def listeners_of(self, gateway_id: str) -> Path:
        """Where a gateway worker offers its listening sockets to the next controller."""
        return self.run / f"listeners-{gateway_id}.sock"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.root / "logs"

    def log_of(self, process_id: str) -> Path:
        """The log of one process, whose id may hold what a file's name cannot, such as `/`."""
        return self.logs / f"{quote(process_id, safe='')}.log"

    @property
    def deployments(self) -> Path:
        """Journals of what was applied elsewhere, with the rendered files."""
        return self.root / "deployments"

    @property
    def files(self) -> Path:
        """Uploaded files and results of batches."""
        return self.root / "files"

    @property
    def data(self) -> Path:
        """Fetched data sets."""
        return self.root / "data"

    @property
    def datasets(self) -> Path:
        """Data sets that were built, and builds that may go on."""
        return self.root / "datasets"

    @property
    def evaluations(self) -> Path:
        """Recorded predictions of references, and results of candidates."""
        return self.root / "evaluations"

    @property
    def trainings(self) -> Path:
        """Checkpoints of trainings that may go on."""
        return self.root / "trainings"

    @property
    def gates(self) -> Path:
        """Signed records of gates, and the key that signs them."""
        return self.root / "gates"

    def may_hold_texts(self, path: Path) -> bool:
        """Whether a file may hold what users wrote: built sets, feedback, recorded answers."""
        folders = (self.datasets, self.data / "feedback", self.evaluations / "recorded")
        return any(folder in path.parents for folder in folders)

    @property
    def optimizations(self) -> Path:
        """Finished steps of searches, and what steps take here."""
        return self.root / "optimizations"

    @property
    def database(self) -> Path:
        """The file of the embedded database."""
        return self.root / "thrifty.db"

    @property
    def database_note(self) -> Path:
        """Says where the data is, if it is not in the embedded database."""
        return self.root / "database.json"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the embedded database."""
        return f"sqlite:///{self.database}"


def find_home() -> Home:
    """The home that the environment names, with an absolute path. Raises `ThriftyError`."""
    named = os.environ.get(HOME_VARIABLE)
    try:
        root = Path(named).expanduser() if named else Path.home() / ".thrifty"
    except RuntimeError as error:
        raise ThriftyError(
            f"{named or '~'} cannot be found: {error} Set {HOME_VARIABLE} to an absolute path."
        ) from None
    return Home(root.absolute())


def make_private_folder(path: Path) -> Path:
    """Create `path` and missing parents, accessible only to their owner; return `path`."""
    try:
        # `mkdir(parents=True)` would create the parents with default permissions.
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ThriftyError(
            f"cannot make the folder {path}: {error.strerror or error}; "
            f"set {HOME_VARIABLE} to a folder you can write to"
        ) from error
    return path
