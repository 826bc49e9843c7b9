"""Texts as commands name them."""

from __future__ import annotations

from pathlib import Path

from thrifty.artifacts import Store
from thrifty.db import open_database
from thrifty.evaluate.recorded_conversations import write_recorded
from thrifty.evaluate.suite import FindLog, find_data
from thrifty.fleet.controller_note import find_database_url
from thrifty.home import Home
from thrifty.types import OnProgress

NONE = "none"


def find_named(name: str | None, home: Home, store: Store, on_progress: OnProgress) -> Path | None:
    """The file or the set `name`, fetched where it is not here; None where nothing is named, or `none`."""
    if name in (None, NONE):
        return None
    return find_data(name, home.data, store, on_progress).path


def make_log_finder(home: Home) -> FindLog:
    """Copies a deployment's recorded conversations out of the request log of this home."""

    def find_log(deployment: str) -> Path:
        database = open_database(find_database_url(home), migrate=False)
        try:
            return write_recorded(database, deployment, home.evaluations / "recorded")
        finally:
            database.close()

    return find_log
