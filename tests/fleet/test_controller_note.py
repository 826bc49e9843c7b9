"""The note of a controller: written whole, private, and believed only while its process runs."""

from __future__ import annotations

import os

import pytest

from thrifty.errors import DatabaseError
from thrifty.fleet.controller_note import (
    find_database_url,
    keep_database_url,
    read_controller_note,
    remove_controller_note,
    stop_home,
    write_controller_note,
)
from thrifty.home import Home, make_private_folder


@pytest.fixture
def run_home(home: Home) -> Home:
    make_private_folder(home.root)
    make_private_folder(home.run)
    return home


def test_a_note_comes_back_and_is_its_owners_alone(run_home: Home) -> None:
    assert read_controller_note(run_home) is None
    write_controller_note(run_home, "http://127.0.0.1:1", "postgresql://user:secret@x/y")
    note = read_controller_note(run_home)
    assert note is not None
    assert (note.pid, note.url, note.alive) == (os.getpid(), "http://127.0.0.1:1", True)
    (path,) = run_home.run.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    remove_controller_note(run_home)
    remove_controller_note(run_home)
    assert read_controller_note(run_home) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', "\xff"])
def test_a_damaged_note_is_no_note(run_home: Home, text: str) -> None:
    (run_home.run / "controller.json").write_text(text, encoding="latin-1")
    assert read_controller_note(run_home) is None
    assert find_database_url(run_home) == run_home.database_url


def test_the_database_is_the_environments_the_running_controllers_or_the_embedded_one(
    run_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_controller_note(run_home, "", "postgresql://x/y")
    assert find_database_url(run_home) == "postgresql://x/y"
    path = run_home.run / "controller.json"
    path.write_text(path.read_text().replace('"created_s": ', '"created_s": 1'))
    assert find_database_url(run_home) == run_home.database_url
    monkeypatch.setenv("THRIFTY_DATABASE", "sqlite:////elsewhere.db")
    assert find_database_url(run_home) == "sqlite:////elsewhere.db"


def test_the_database_of_what_ran_last_is_kept(
    run_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://user:secret@x/y"
    keep_database_url(run_home, url)
    assert run_home.database_note.stat().st_mode & 0o777 == 0o600
    assert find_database_url(run_home) == url
    monkeypatch.setenv("THRIFTY_DATABASE", url)
    keep_database_url(run_home, url)
    assert "secret" not in run_home.database_note.read_text()
    assert find_database_url(run_home) == url
    monkeypatch.delenv("THRIFTY_DATABASE")
    with pytest.raises(DatabaseError, match="from THRIFTY_DATABASE, which is not set; set it"):
        find_database_url(run_home)
    run_home.database_note.write_text("{")
    with pytest.raises(DatabaseError, match="is damaged: set THRIFTY_DATABASE"):
        find_database_url(run_home)
    keep_database_url(run_home, run_home.database_url)
    assert find_database_url(run_home) == run_home.database_url
    assert not run_home.database_note.exists()


def test_what_a_dead_controller_left_is_cleared_away(run_home: Home) -> None:
    write_controller_note(run_home, "", "sqlite:////x.db")
    path = run_home.run / "controller.json"
    path.write_text(path.read_text().replace('"created_s": ', '"created_s": 1'))
    assert stop_home(run_home) == (False, 0)
    assert not path.exists()
