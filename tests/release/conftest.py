"""A service between whose versions there is a release."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.release.traffic import World
from thrifty.db import open_database
from thrifty.home import Home


@pytest.fixture
def world(home: Home) -> Iterator[World]:
    database = open_database(home.database_url, migrate=True)
    made = World(database)
    yield made
    if made.watch is not None:
        made.watch.close()
    database.close()
