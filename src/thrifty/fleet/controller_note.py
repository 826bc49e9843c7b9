"""The note that a controller leaves in its home, and what other commands do by it: find its address
and its database, and stop it.
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
from thrifty.fleet.process import RECORDER_ROLE, ProcessId, adopt_process, find_ours
from thrifty.home import Home

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


def find_database_url(home: Home) -> str:
    """The database that commands of this home use: the environment's, that of what runs here (a
    killed controller leaves its processes), or the embedded one.
    """
    named = os.environ.get("THRIFTY_DATABASE")
    if named:
        return named
    note = read_controller_note(home)
    return note.database if note is not None and is_in_use(home, note) else home.database_url


def is_in_use(home: Home, note: ControllerNote | None) -> bool:
    """Whether a controller runs in a home, or processes that a killed one left."""
    return (note is not None and note.alive) or bool(find_ours(home.root))


@contextlib.contextmanager
def open_home(home: Home) -> Iterator[Database]:
    """The database of the service in `home`. Raises `ControlError` where there was none yet."""
    url = find_database_url(home)
    try:
        database = open_database(url, migrate=False)
    except DatabaseError as error:
        if url == home.database_url and not home.database.exists():
            raise ControlError(
                f"no service was started in {home.root} yet; start one (thrifty up SPEC), or set "
                "THRIFTY_HOME to the home of the one that you mean"
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
