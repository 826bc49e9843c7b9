"""Texts as commands name them."""

from __future__ import annotations

from pathlib import Path

from thrifty.artifacts import Store
from thrifty.evaluate.suite import find_data
from thrifty.home import Home
from thrifty.types import OnProgress

NONE = "none"


def find_named(name: str | None, home: Home, store: Store, on_progress: OnProgress) -> Path | None:
    """The file or the set `name`, fetched where it is not here; None where nothing is named, or `none`."""
    if name in (None, NONE):
        return None
    return find_data(name, home.data, store, on_progress).path
