"""The notes that a controller leaves in its home, and what other commands do by them: find its
address and its database, and stop it.

run/controller.json  who it is and where it listens, while it runs
database.json        where its data is, where that is not the embedded database; it stays
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from thrifty.db import Database, open_database
from thrifty.errors import ControlError, DatabaseError, FleetError
from thrifty.files import write_atomically
from thrifty.fleet.process import RECORDER_ROLE, ProcessId, adopt_process, find_ours
from thrifty.home import Home

DATABASE_VARIABLE = "THRIFTY_DATABASE"
_NAME = "controller.json"


@dataclass(frozen=True)
class ControllerNote:
    """What `run/controller.json` says."""

    pid: int
    created_s: float
    url: str
    database: str
    """Its database's URL, which other commands then use too. The file is its owner's alone."""

    @property
    def alive(self) -> bool:
        """Whether that controller still runs."""
        return ProcessId(self.pid, self.created_s).find() is not None


def read_controller_note(home: Home) -> ControllerNote | None:
    """The note of the latest controller of this home, whether it runs or not."""
    try:
        return ControllerNote(**json.loads((home.run / _NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_controller_note(home: Home, url: str, database_url: str) -> None:
    """Say that this process is the controller of a home."""
    me = psutil.Process()
    note = ControllerNote(me.pid, me.create_time(), url, database_url)
    path = home.run / _NAME
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(vars(note)))
    os.replace(temporary, path)


def remove_controller_note(home: Home) -> None:
    """Take the note away, if there is one."""
    (home.run / _NAME).unlink(missing_ok=True)


def keep_database_url(home: Home, url: str) -> None:
    """Note where the data of a home is, for commands that run while nothing else does.

    A URL from the environment may hold a password that is in no file: its variable is noted. Raises
    `OSError`.
    """
    if url == home.database_url:
        home.database_note.unlink(missing_ok=True)
        return
    from_environment = url == os.environ.get(DATABASE_VARIABLE)
    content = {"variable": DATABASE_VARIABLE} if from_environment else {"url": url}
    write_atomically(home.database_note, json.dumps(content), mode=0o600)


def find_database_url(home: Home) -> str:
    """The database that commands of this home use: the environment's, that of what runs here (a
    killed controller leaves its processes), that of what ran here last, or the embedded one. Raises
    `DatabaseError` where it is not known.
    """
    named = os.environ.get(DATABASE_VARIABLE)
    if named:
        return named
    note = read_controller_note(home)
    if note is not None and is_in_use(home, note):
        return note.database
    try:
        kept = json.loads(home.database_note.read_bytes())
    except FileNotFoundError:
        return home.database_url
    except OSError as error:
        raise DatabaseError(f"{home.database_note} cannot be read: {error.strerror}") from None
    except ValueError:
        kept = None
    if isinstance(kept, dict) and isinstance(kept.get("url"), str):
        return str(kept["url"])
    if kept is None:
        raise DatabaseError(
            f"{home.database_note} is damaged: set {DATABASE_VARIABLE} to the database of {home.root}"
        )
    raise DatabaseError(
        f"the service of {home.root} took its database from {DATABASE_VARIABLE}, which is not set; "
        "set it to the same URL"
    )


def is_in_use(home: Home, note: ControllerNote | None) -> bool:
    """Whether a controller runs in a home, or processes that a killed one left."""
    return (note is not None and note.alive) or bool(find_ours(home.root))


@contextlib.contextmanager
def open_home(home: Home, *, create: bool = False) -> Iterator[Database]:
    """The database of the service in `home`, which `thrifty up` migrates. Raises `ControlError` where
    there was none yet; with `create`, it is made.
    """
    url = find_database_url(home)
    try:
        database = open_database(url, migrate=False, create=create)
    except DatabaseError as error:
        if url == home.database_url and not home.database.exists():
            raise ControlError(
                f"no service was started in {home.root} yet; start one (thrifty up SPEC), or set "
                f"THRIFTY_HOME to the home of the one that you mean, or {DATABASE_VARIABLE} to its "
                "database"
            ) from None
        raise error
    try:
        yield database
    finally:
        database.close()


def stop_home(home: Home, grace_s: float = 60.0) -> tuple[bool, int]:
    """Stop what runs in a home: the controller, or what a dead controller left. Blocks.

    Returns whether a controller ran, and how many orphans were ended.
    """
    note = read_controller_note(home)
    ran = False
    if note is not None and note.alive:
        ran = True
        ident = ProcessId(note.pid, note.created_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(note.pid, 15)
        deadline_s = time.monotonic() + grace_s
        while ident.find() is not None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        if ident.find() is not None:
            raise FleetError(
                f"the controller (pid {note.pid}) has not ended within {grace_s:g} s; it may be "
                "draining long requests. Try again, or end it yourself"
            )
    ended = 0
    ours = find_ours(home.root)
    for ident, _, process_id in sorted(ours, key=lambda one: one[1] == RECORDER_ROLE):
        orphan = adopt_process(ident, home.log_of(process_id))
        if orphan is not None:
            asyncio.run(orphan.stop(10.0))
            ended += 1
    if note is not None and not note.alive:
        with contextlib.suppress(OSError):
            remove_controller_note(home)
    return ran, ended
