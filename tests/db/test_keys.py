"""Keys in the database: roles of this release and of the previous one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, update

from thrifty.db import open_database
from thrifty.db.fleet import read_fleet
from thrifty.db.keys import Role, create_key, list_keys
from thrifty.db.tables import keys


def test_roles_are_stored_under_names_that_the_first_release_knows(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    for role in Role:
        create_key(database, f"a-{role}", role)
    with database.begin() as connection:
        stored = set(connection.execute(select(keys.c.role)).scalars())
    assert stored == {"admin", "user", "monitor"}
    assert [key.role for key in list_keys(database)] == sorted(Role)
    assert {key.role for key in read_fleet(database).keys} == set(Role)
    database.close()


@pytest.mark.parametrize("written", ["viewer", "monitor"])
def test_a_viewer_is_read_by_both_names_and_written_by_one(tmp_path: Path, written: str) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    key, _ = create_key(database, "watcher", written)
    assert key.role is Role.VIEWER
    with database.begin() as connection:
        assert connection.execute(select(keys.c.role)).scalar_one() == "monitor"
        connection.execute(update(keys).values(role=written))
    assert [key.role for key in list_keys(database)] == [Role.VIEWER]
    assert [key.role for key in read_fleet(database).keys] == [Role.VIEWER]
    database.close()
