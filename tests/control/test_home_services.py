"""The management API's services on a real home: each calls what the command line calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.control.test_plan import TWO, snapshot
from tests.control.test_service_api import apply, database, replicas
from thrifty.api.models import KeyLimitsModel, NewKey
from thrifty.api.services import ApiServices
from thrifty.db import Database
from thrifty.db.desired import DesiredChange, change_desired, read_desired, read_history
from thrifty.errors import ControlError, SpecError, ThriftyError
from thrifty.home import Home
from thrifty.openai.errors import WireError
from thrifty.types import Role
from thrifty.worker.home_services import HomeServices

__all__ = ["database"]


@pytest.fixture
def services(home: Home, database: Database, tmp_path: Path) -> ApiServices:
    apply(home, database, tmp_path / "spec", name="chat", versions=TWO)
    replicas(database, "chat", "ready")
    return HomeServices(database, home)


def status_of(act: Any) -> int:
    with pytest.raises(WireError) as caught:
        act()
    return caught.value.status


def test_status_and_traffic(services: ApiServices, database: Database) -> None:
    (deployment,) = services.get_status().deployments
    assert [(v.label, v.weight, v.state) for v in deployment.versions] == [
        ("a", 90.0, "ready"), ("b", 10.0, "ready"),
    ]  # fmt: skip
    assert [(r.version, r.state) for r in deployment.replicas] == [("a", "ready"), ("b", "ready")]
    assert services.get_status().gateway.url is None
    traffic = services.get_traffic("chat")
    assert (traffic.weights, traffic.owner) == ({"a": 90.0, "b": 10.0}, "spec")
    traffic = services.set_traffic("chat", {"b": 30}, who="ann", why="a trial")
    assert (traffic.weights, traffic.owner) == ({"a": 90.0, "b": 30.0}, "traffic")
    change = read_history(database, "chat", 1)[0]
    assert (change.who, change.why) == ("ann (management API)", "a trial")
    assert status_of(lambda: services.get_traffic("nothing")) == 404
    assert status_of(lambda: services.set_traffic("chat", {"z": 1}, who="", why="")) == 404
    with pytest.raises(ControlError, match="all weights of 'chat' would be 0"):
        services.set_traffic("chat", {"a": 0, "b": 0}, who="", why="")


def test_a_rollback_needs_something_to_go_back_to(services: ApiServices) -> None:
    assert status_of(lambda: services.roll_back("nothing", who="", why="")) == 404
    assert status_of(lambda: services.roll_back("chat", who="", why="")) == 409
    services.set_traffic("chat", {"a": 1}, who="ann", why="")
    change = services.roll_back("chat", who="bob", why="no")
    assert (change.kind, change.who, change.why) == ("rollback", "bob (management API)", "no")
    assert services.get_traffic("chat").weights == {"a": 90.0, "b": 10.0}


def test_a_rollback_removes_a_deployment_on_demand_only(
    services: ApiServices, database: Database
) -> None:
    now = read_desired(database).deployments["chat"]
    for state in (None, now):
        changes = [DesiredChange("chat", state)]
        change_desired(database, lambda _, found=changes: found, kind="apply", who="ann", why="")
    assert status_of(lambda: services.roll_back("chat", who="bob", why="")) == 409
    assert read_desired(database).deployments["chat"] == now
    services.roll_back("chat", who="bob", why="", remove=True)
    assert read_desired(database).deployments == {}


def test_a_rollback_to_a_model_that_is_gone_is_refused(
    services: ApiServices, database: Database
) -> None:
    now = read_desired(database).deployments["chat"]
    gone = replace(now, versions=(replace(now.versions[0], artifact="a" * 64),))
    for state in (gone, now):
        changes = [DesiredChange("chat", state)]
        change_desired(database, lambda _, found=changes: found, kind="apply", who="ann", why="")
    assert status_of(lambda: services.roll_back("chat", who="bob", why="")) == 409
    assert read_desired(database).deployments["chat"] == now


def test_specs_are_planned_and_refused_in_a_process_of_their_own(
    services: ApiServices, home: Home
) -> None:
    spec = {"name": "chat", "engine": "echo", "versions": [*TWO, {"label": "c"}]}
    before = snapshot(home.root)
    plan = services.make_plan(spec)
    assert snapshot(home.root) == before
    assert [step.what for step in plan.start][-2:] == [
        "chat/c: 1 replica of echo@v1 (echo)", "gateway: 1 worker at 127.0.0.1:8080",
    ]  # fmt: skip
    with pytest.raises(SpecError) as caught:
        services.make_plan({"engin": "echo"})
    assert [problem.path for problem in caught.value.problems] == ["engin"]
    with pytest.raises(ThriftyError, match="no service runs in"):
        services.apply_spec(spec, reset=False, who="ann", why="")


def test_keys(services: ApiServices) -> None:
    made = services.create_key(
        NewKey(name="ann", role=Role.OPERATOR, limits=KeyLimitsModel(rpm=5)), who="bob"
    )
    assert (made.key.role, made.key.limits.rpm) == (Role.OPERATOR, 5)
    assert [key.name for key in services.list_keys().keys] == ["ann"]
    services.revoke_key("ann", who="bob")
    assert services.list_keys().keys == []
    assert status_of(lambda: services.revoke_key("ann", who="bob")) == 404
