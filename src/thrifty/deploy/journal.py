"""What was applied by client programs: a journal of every step, kept in THRIFTY_HOME.

A step is noted as begun before its program starts. So whatever a failure or a kill left is known:
another `apply` goes on with it, and `destroy` undoes what was begun and nothing else. The rendered
files are kept beside the journal, because programs need them to take things away.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from thrifty.artifacts.disk import lock_file
from thrifty.deploy.base import Files
from thrifty.deploy.commands import LINES, Arguments, Commands, Step
from thrifty.deploy.write import write_files
from thrifty.errors import ThriftyError
from thrifty.files import write_atomically
from thrifty.home import make_private_folder

PLANNED, BEGUN, DONE = "planned", "begun", "done"


class JournalStep(msgspec.Struct):
    """One step, and how far it is."""

    step: Step
    state: str = PLANNED


class Journal(msgspec.Struct):
    """One deployment."""

    target: str
    name: str
    checksum: str
    """Of the spec and the options."""
    install: str
    steps: list[JournalStep]
    status: Arguments
    logs: Arguments
    variables: Arguments = ()

    @property
    def whole(self) -> bool:
        """Whether all of it was applied."""
        return all(one.state == DONE for one in self.steps)


class Deployments:
    """The journals below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder_of(self, target: str, name: str) -> Path:
        """The folder of one deployment; its files are in `files`."""
        return self._root / f"{target}-{name}"

    def read(self, target: str, name: str) -> Journal | None:
        """What was applied; None if nothing was. Raises `ThriftyError`."""
        path = self.folder_of(target, name) / "journal.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Journal)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ThriftyError(f"cannot read {path}: {error}") from None

    @contextlib.contextmanager
    def changing(self, target: str, name: str) -> Iterator[Path]:
        """The folder of a deployment, for one process at a time."""
        make_private_folder(self._root)
        with lock_file(self._root / f"{target}-{name}.lock"):
            yield make_private_folder(self.folder_of(target, name))

    def apply(
        self, target: str, name: str, checksum: str, files: Files, commands: Commands
    ) -> Journal:
        """Run all steps. Raises `ThriftyError` where one fails; called again, it goes on."""
        with self.changing(target, name) as folder:
            before = self.read(target, name)
            begun = {} if before is None else {one.step.what: one.state for one in before.steps}
            journal = Journal(
                target, name, checksum, commands.install,
                [JournalStep(s, BEGUN if begun.get(s.what, PLANNED) != PLANNED else PLANNED)
                 for s in commands.steps],
                commands.status, commands.logs, commands.variables,
            )  # fmt: skip
            check_programs(journal)
            self._save(journal)
            write_files(files, folder / "files")
            for one in journal.steps:
                one.state = BEGUN
                self._save(journal)
                _make(one.step, target)
                one.state = DONE
                self._save(journal)
            return journal

    def destroy(self, target: str, name: str, *, data: bool, say: Callable[[str], None]) -> None:
        """Undo what was begun, the last first. Raises `ThriftyError`; called again, it goes on."""
        with self.changing(target, name) as folder:
            journal = self.read(target, name)
            if journal is None:
                raise ThriftyError(f"nothing was applied as {target} {name} from this home")
            check_programs(journal)
            for one in reversed(journal.steps):
                if one.state == PLANNED:
                    continue
                step = one.step
                for arguments in step.undo_data if data and step.undo_data else step.undo:
                    if run_program(arguments) != 0:
                        raise ThriftyError(
                            f"{step.what} was not taken away: {shlex.join(arguments)} failed, and "
                            "what it said is above. Repeat this; if nothing of it is left, delete "
                            f"{folder}"
                        )
                one.state = PLANNED
                self._save(journal)
                say(f"Gone: {step.what}")
            shutil.rmtree(folder)

    def _save(self, journal: Journal) -> None:
        path = self.folder_of(journal.target, journal.name) / "journal.json"
        write_atomically(path, msgspec.json.encode(journal).decode())


def check_programs(journal: Journal) -> None:
    """Raise `ThriftyError` where a program or a variable is missing, before anything starts."""
    programs = {one.step.do[0] for one in journal.steps} | {journal.status[0]}
    for program in sorted(programs):
        if shutil.which(program) is None:
            raise ThriftyError(
                f"the program {program!r} is not on the PATH; install it: {journal.install}"
            )
    missing = [name for name in journal.variables if not os.environ.get(name)]
    if missing:
        raise ThriftyError(
            f"set {', '.join(missing)} in the environment, from which {journal.steps[0].step.do[0]} "
            "takes secrets (openssl rand -hex 32 makes one)"
        )


def run_program(arguments: Arguments) -> int:
    """Run a program to its end; what it prints goes to stderr. Returns its exit status."""
    try:
        return subprocess.run(list(arguments), stdout=sys.stderr, check=False).returncode
    except OSError as error:
        raise ThriftyError(f"{arguments[0]} cannot be run: {error.strerror}") from None


def show_program(arguments: Arguments, lines: int | None = None) -> int:
    """Run a program that shows something, on stdout. Returns its exit status."""
    given = [str(lines) if one == LINES else one for one in arguments]
    try:
        return subprocess.run(given, check=False).returncode
    except OSError as error:
        raise ThriftyError(f"{arguments[0]} cannot be run: {error.strerror}") from None


def _make(step: Step, target: str) -> None:
    there = bool(step.exists) and run_program(step.exists) == 0
    arguments = step.change if there else step.do
    status = run_program(arguments)
    if status != 0:
        raise ThriftyError(
            f"{step.what}: {shlex.join(arguments)} ended with status {status}, and what it said is "
            f"above. Apply again to go on, or take back what was made: thrifty deploy destroy {target}"
        )
