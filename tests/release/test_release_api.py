"""Releases over the management API's services, and by the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts import run_thrifty
from tests.release.traffic import PLAN, World
from thrifty.api.models import NewRelease
from thrifty.artifacts import Store
from thrifty.control.candidate import prepare_candidate
from thrifty.db import open_database
from thrifty.engines.machine import detect_machine
from thrifty.errors import ControlError
from thrifty.home import Home
from thrifty.model_maker import Compressor
from thrifty.openai.errors import WireError
from thrifty.worker.home_services import HomeServices


@pytest.fixture
def world(home: Home) -> Iterator[World]:
    database = open_database(home.database_url, migrate=True)
    made = World(database)
    made.prepare()
    yield made
    database.close()


def test_the_api_starts_shows_and_acts(world: World, home: Home) -> None:
    services = HomeServices(world.database, home)
    made = services.start_release("m", NewRelease(candidate="new", plan=PLAN), who="ann")
    assert (made.state, made.stage, made.events[0].who) == (
        "running",
        "start",
        "ann (management API)",
    )
    assert [one.id for one in services.list_releases().releases] == [made.id]
    assert services.act_on_release(made.id, "pause", who="ann", why="lunch").message == "lunch"
    with pytest.raises(WireError) as caught:
        services.act_on_release(made.id, "pause", who="ann", why="")
    assert caught.value.status == 409
    with pytest.raises(WireError, match="no act named 'begin'"):
        services.act_on_release(made.id, "begin", who="ann", why="")
    with pytest.raises(ControlError, match="owns the weights"):
        services.set_traffic("m", {"new": 1}, who="ann", why="")
    services.set_traffic("m", {"new": 1}, who="ann", why="", force=True)
    assert services.get_release(made.id).state == "ended"
    with pytest.raises(WireError, match="no release named '9'"):
        services.get_release(9)
    with pytest.raises(WireError, match="no version named 'z'"):
        services.start_release("m", NewRelease(candidate="z"), who="ann")


def test_a_name_without_a_version_or_a_model_is_refused(world: World, home: Home) -> None:
    machine = detect_machine()
    maker = Compressor(home, Store(home.models), machine)
    with pytest.raises(ControlError, match=r"'m' has no version 'z' .*loads no stored model"):
        prepare_candidate(world.database, home, machine, "m", "z", maker=maker)


@pytest.mark.parametrize("judge", ["os:system", {"url": "http://elsewhere", "model": "m"}])
def test_a_plan_over_http_runs_no_code_and_sends_no_texts(
    world: World, home: Home, judge: Any
) -> None:
    services = HomeServices(world.database, home)
    plan = {**PLAN, "shadow": {"judge": judge}}
    with pytest.raises(ControlError, match="must be 'deployment:NAME'"):
        services.start_release("m", NewRelease(candidate="new", plan=plan), who="ann")


@pytest.mark.timeout(300)
def test_the_command_line(world: World, home: Home, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(PLAN))

    def run(*arguments: str, code: int = 0) -> Any:
        done = run_thrifty(home.root, *arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr

    said = run("release", "new", "--to", "m", "--plan", str(plan), "--yes")
    assert (said["state"], said["candidate"], said["plan"]["settle"]) == ("running", "new", 1.0)
    assert "thrifty release abort 1" in run("traffic", "m", "new=1", code=1)
    (row,) = run("releases")["releases"]
    assert row["id"] == 1
    assert run("release", "abort", "1")["state"] == "aborted"
