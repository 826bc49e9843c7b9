"""Keys in the database: roles of this release and of the previous one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import select, update

from thrifty.db import open_database
from thrifty.db.fleet import read_fleet
from thrifty.db.keys import (
    KeyLimits,
    Role,
    Scope,
    create_key,
    hash_key,
    keep_key,
    list_keys,
    rotate_key,
)
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


def test_a_key_gets_another_secret_and_keeps_the_rest(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    scope = Scope(("chat",), time.time() + 3600)
    first, old = create_key(database, "app", limits=KeyLimits(rpm=3), scope=scope)
    second, new = rotate_key(database, "app", 60.0)
    assert (second.id, second.limits, second.deployments) == (first.id, first.limits, ("chat",))
    assert list_keys(database) == [second]
    now_s = time.time()
    assert not second.is_over(hash_key(new), now_s)
    assert not second.is_over(hash_key(old), now_s)
    assert second.is_over(hash_key(old), now_s + 61)
    assert second.is_over(hash_key(new), now_s + 3601)
    third, _ = rotate_key(database, "app")
    assert third.is_over(hash_key(new), time.time()), "at once, by itself"
    assert third.previous_hash != hash_key(old), "only one is kept"
    with pytest.raises(ThriftyError, match="no key named 'nobody'"):
        rotate_key(database, "nobody")
    with pytest.raises(ThriftyError, match="100 years at most"):
        rotate_key(database, "app", 1e25)
    assert list_keys(database) == [third]
    database.close()


@pytest.mark.parametrize(
    ("scope", "role", "fault"),
    [
        (Scope(("chat",)), "operator", "its role is 'user', not 'operator'"),
        (Scope(()), "user", "1 to 100 deployments"),
        (Scope(("",)), "user", "1 to 100 deployments"),
        (Scope(expires_s=5.0), "user", "cannot expire in the past"),
        (Scope(expires_s=1e25), "user", "nor in more than 100 years"),
        (Scope(expires_s=float("nan")), "user", "nor in more than 100 years"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(
    tmp_path: Path, scope: Scope, role: str, fault: str
) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    with pytest.raises(ThriftyError, match=fault):
        create_key(database, "app", role, scope=scope)
    database.close()
