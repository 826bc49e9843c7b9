"""Keys in the database: roles of this release and of the previous one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, update

from thrifty.db import open_database
from thrifty.db.fleet import read_fleet
from thrifty.db.keys import Role, create_key, hash_key, keep_key, list_keys
from thrifty.db.tables import keys
from thrifty.errors import ThriftyError


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


def test_a_key_that_others_made_is_kept_once_and_follows_its_secret(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    first = keep_key(database, "ADMIN_KEY", "admin", "a" * 40)
    assert first.hint == "aaaa..."
    assert keep_key(database, "ADMIN_KEY", "admin", "a" * 40).id == first.id
    second = keep_key(database, "ADMIN_KEY", "admin", "b" * 40)
    assert [key.hash for key in list_keys(database)] == [hash_key("b" * 40)]
    assert second.id == first.id
    keep_key(database, "ADMIN_KEY", "viewer", "b" * 40)
    assert [key.role for key in list_keys(database)] == [Role.VIEWER]
    database.close()


@pytest.mark.parametrize("secret", ["", "short", "ä" * 40, "a" * 40 + "\n"])
def test_a_secret_that_can_be_guessed_is_refused(tmp_path: Path, secret: str) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    with pytest.raises(ThriftyError, match="at least 32 random printable ASCII"):
        keep_key(database, "ADMIN_KEY", "admin", secret)
    assert list_keys(database) == []
    database.close()
