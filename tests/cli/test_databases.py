"""Which database commands use, and that only `thrifty up` changes its tables."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

import thrifty
from tests.db.test_first_release import FOLDER
from thrifty.cli.app import app
from thrifty.db import open_database
from thrifty.db.keys import list_keys
from thrifty.errors import ControlError, DatabaseError, ThriftyError
from thrifty.fleet.ports import find_free_port
from thrifty.home import Home

LOOKING = (
    "logs", "keys list", "keys rotate ann", "keys revoke ann", "keys sign-ins", "feedback list",
    "feedback export --as sft", "cost", "cache stats", "cache purge", "audit list", "audit verify",
    "audit head", "encryption status", "encryption reseal", "forget --user ann --yes",
    "subject-export --user ann", "history", "export requests --out x.jsonl",
)  # fmt: skip


def fail(home: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> ThriftyError:
    """The error with which a command ends."""
    monkeypatch.setenv("THRIFTY_HOME", str(home))
    monkeypatch.chdir(home)
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, ThriftyError), (result.output, result.exception)
    assert result.stdout == ""
    return result.exception


@pytest.mark.parametrize("command", LOOKING)
def test_no_other_command_makes_a_database(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = fail(tmp_path, command, monkeypatch)
    assert isinstance(error, ControlError)
    assert "no service was started in" in str(error)
    assert not Home(tmp_path).database.exists()


@pytest.mark.parametrize("command", [*LOOKING, "keys create --name bob"])
def test_no_other_command_migrates(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sqlite3.connect(Home(tmp_path).database)
    connection.executescript((FOLDER / "sqlite.sql").read_text())
    before = list(connection.iterdump())
    error = fail(tmp_path, command, monkeypatch)
    assert isinstance(error, DatabaseError)
    assert "run 'thrifty up' once to update it" in str(error)
    assert list(connection.iterdump()) == before
    connection.close()


@pytest.mark.service
def test_commands_use_the_database_of_the_service_that_ran_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    url = f"sqlite:///{tmp_path}/other.db"
    with thrifty.Service(
        home=home.root, engine__kind="echo", database=url, gateway__port=find_free_port()
    ):
        pass
    monkeypatch.setenv("THRIFTY_HOME", str(home.root))
    runner = CliRunner()
    assert runner.invoke(app, ["keys", "create", "--name", "ann"]).exit_code == 0
    verified = runner.invoke(app, ["audit", "verify", "--json"])
    assert json.loads(verified.stdout)["whole"]
    assert runner.invoke(app, ["forget", "--user", "ann", "--yes"]).exit_code == 0
    assert not home.database.exists()
    database = open_database(url, migrate=False)
    assert [key.name for key in list_keys(database)] == ["ann"]
    database.close()
