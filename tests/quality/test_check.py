"""Recorded answers, checked: what the log and texts tell, what followed, and that each counts once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select

from tests.control.running import deployment, echo
from tests.db.databases import KINDS, empty_tables, open_kind
from tests.quality.answers import DEPLOYMENT, NOON_S, answered, check, record, said, user
from thrifty.db import Database, open_database
from thrifty.db.desired_state import DesiredChecks
from thrifty.db.quality_sums import read_sums
from thrifty.db.request_log import permit_deletion
from thrifty.db.rollups import DAY_S, HOUR_S, RolledMeanwhileError
from thrifty.db.scores import read_scores
from thrifty.db.tables import answer_checks, answer_scores, quality_sums, requests, unchecked_rows
from thrifty.erase.erase import collect_person, erase_person
from thrifty.home import Home
from thrifty.observe.rollups.roll import Keep
from thrifty.quality import check as module
from thrifty.quality.check import COUNTED, FOLLOWED, AnswerChecker, find_usual
from thrifty.quality.figures import describe_quality, make_figures
from thrifty.quality.watch import AnswerWatch


@pytest.fixture(scope="module", params=KINDS)
def shared(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(shared: Database) -> Database:
    empty_tables(shared)
    return shared


def figures(database: Database, version: str = "a") -> Any:
    return next(one for one in make_figures(read_sums(database, DAY_S)) if one.version == version)


def test_faults_are_counted_by_conversation_and_day(database: Database) -> None:
    refusal = "I'm sorry, but I can't help with that."
    record(
        database,
        answered("Who are you?", refusal, conversation_id="one"),
        answered("Who are you?!", refusal, conversation_id="one", at_s=NOON_S + 5),
        answered("Capital of France?", conversation_id="two"),
        answered("Capital of France?", conversation_id="three", cache="hit"),
        answered("Capital of France?", conversation_id="four", status=502, error="upstream_failed"),
        answered("Capital of France?", conversation_id="five", origin="canary"),
    )
    assert check(database) == 4
    found = figures(database)
    refused = found.find("refusal")
    assert (refused.found, refused.count, refused.all_found, refused.all_count) == (1, 2, 2, 4)
    assert refused.low < refused.share == 0.5 < refused.high
    assert (found.answers, found.checked) == (4, 4)
    assert check(database) == 0
    assert figures(database) == found


def test_without_texts_the_log_tells_what_it_can(database: Database) -> None:
    record(
        database,
        answered(None, conversation_id="one", completion_tokens=16, max_tokens=16),
        answered(None, conversation_id="two", completion_tokens=0, max_tokens=16),
        answered(None, conversation_id="three", error="client_gone"),
    )
    assert check(database) == 3
    found = figures(database)
    assert (found.find("truncated").found, found.find("truncated").count) == (1, 2)
    assert (found.find("empty").found, found.find("empty").count) == (1, 2)
    assert found.find("refusal").count == 0
    assert (found.find("abandoned").found, found.find("abandoned").count) == (1, 3)


def test_a_format_that_was_asked_for_is_checked(database: Database) -> None:
    schema = '{"type":"json_schema","json_schema":{"schema":{"type":"object","required":["a"]}}}'
    facts = {"format": schema, "finish": ["length"]}
    for place, answer in enumerate(('{"a":1}', '{"b":1}', "Sure! {")):
        record(database, answered("JSON, please", answer, conversation_id=str(place), facts=facts))
    check(database)
    found = figures(database)
    assert (found.find("format").found, found.find("format").count) == (1, 3)
    assert (found.find("schema").found, found.find("schema").count) == (1, 2)
    assert found.find("truncated").found == 3


def test_what_followed_counts_where_the_answer_is(database: Database) -> None:
    question, again = user("What is the capital of France?"), user("Tell me the capital of France")
    talk = [question, said("Paris.")]

    def at(place: int, asked: Any, name: str, version: str = "b") -> Any:
        return answered(asked, at_s=NOON_S + place, conversation_id=name, version=version)

    record(database, *(at(0, [question], name, "a") for name in "cdefg"))
    check(database)
    record(
        database,
        at(60, [question], "c"),
        at(60, [*talk, again], "d"),
        at(60, [*talk, user("No, that is wrong.")], "e"),
        at(60, [*talk, user("Thanks! And of Spain?")], "f"),
        at(90, [*talk, user("Thanks! And of Spain?")], "f"),
    )
    check(database)
    found = figures(database, "a")
    counts = {one.name: (one.found, one.count) for one in found.engagement}
    assert counts["regenerated"] == counts["rephrased"] == counts["corrected"] == (1, 4)
    assert counts["accepted"] == (1, 4)
    # The first answers are of "a", what came next of "b".
    assert found.sessions.count == 5
    assert figures(database, "b").sessions.turns is None
    with database.begin() as connection:
        flags = connection.execute(select(answer_checks.c.flags)).scalars().all()
    assert flags.count(COUNTED | FOLLOWED) == 4


def test_a_conversation_with_another_deployment_is_another_one(database: Database) -> None:
    both = {"chat": DesiredChecks(1e6), "other": DesiredChecks(1e6)}
    question = user("What is the capital of France?")
    record(
        database,
        answered([question], at_s=NOON_S, conversation_id="c"),
        answered([question], at_s=NOON_S + 60, conversation_id="c", deployment="other"),
        answered(
            [question, said("Paris."), user("No, that is wrong.")], at_s=NOON_S + 90,
            conversation_id="c", deployment="other", version="b",
        ),
    )  # fmt: skip
    AnswerChecker(database).step(both)
    found = {one.name: one.found for one in figures(database).engagement}
    assert not any(found.values())
    assert figures(database).sessions.turns == 1.0


def test_a_pause_ends_a_session_and_nobody_is_taken_for_another(database: Database) -> None:
    for minute in (0, 10, 20, 100):
        asked = [user("Hello there"), said("Paris."), user(f"More, please ({minute})")]
        record(database, answered(asked, at_s=NOON_S + 60 * minute, conversation_id="one"))
    for minute in range(4):
        # Who asks the very same without a name may be somebody else.
        asked = answered(
            "Hello", at_s=NOON_S + 60 * minute, conversation_id="two", version="b", end_user=None
        )
        record(database, asked)
    check(database)
    sessions = figures(database).sessions
    assert (sessions.count, sessions.turns, sessions.returned) == (2, 2.0, 1)
    other = figures(database, "b")
    assert other.sessions.count == 4
    assert other.find("regenerated").count == 0


def test_of_too_many_answers_whole_conversations_are_left_out(database: Database) -> None:
    for turn in range(3):
        record(
            database,
            *(answered("Hi", conversation_id=f"c{n}", at_s=NOON_S + turn) for n in range(400)),
        )
    checker = AnswerChecker(database)
    assert checker.step({DEPLOYMENT: DesiredChecks(answers_per_s=5)}) is not None
    found = figures(database)
    assert found.answers == 1200
    assert 180 < found.checked < 450
    assert found.checked % 3 == 0
    assert found.sessions.count * 3 == found.checked
    empty_tables(database)
    record(database, answered("Hi"))
    assert check(database, DesiredChecks(answers_per_s=0)) == 0


def test_a_step_is_done_once_and_whole(database: Database, monkeypatch: Any) -> None:
    record(database, answered("Hi", conversation_id="one"))
    settings = {DEPLOYMENT: DesiredChecks()}
    first, second = AnswerChecker(database), AnswerChecker(database)
    write = module.write_checks

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(module, "write_checks", write)
        assert second.step(settings) == 1
        write(*arguments)

    monkeypatch.setattr(module, "write_checks", late)
    with pytest.raises(RolledMeanwhileError):
        first.step(settings)
    assert figures(database).checked == 1
    assert first.step(settings) is None


def test_lengths_are_compared_with_the_days_before(database: Database) -> None:
    day = NOON_S - DAY_S
    record(
        database,
        *(
            answered(None, at_s=day + n, conversation_id=f"c{n}", completion_tokens=90 + n % 20)
            for n in range(300)
        ),
    )
    check(database)
    low, high = find_usual(database, NOON_S)[DEPLOYMENT] or (0, 0)
    assert 85 < low < 92
    assert 107 < high < 114


def test_what_is_kept_no_longer_goes(database: Database) -> None:
    old = answered("Hi", at_s=NOON_S - 4 * DAY_S, conversation_id="one")
    record(database, old, answered("Hi", conversation_id="two", at_s=NOON_S))
    check(database, DesiredChecks(1e6, judge="a:b", judge_share=1.0))
    with database.begin() as connection, permit_deletion(connection):
        connection.execute(delete(requests).where(requests.c.id == old.row[0]))
    AnswerChecker(database).clean(Keep(hours_s=2 * DAY_S))
    with database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(answer_scores)).scalar() == 1
        steps = select(quality_sums.c.step_s)
        assert sorted(connection.execute(steps).scalars()) == [HOUR_S, DAY_S, DAY_S]
        assert connection.execute(select(func.count()).select_from(unchecked_rows)).scalar() == 0


def test_a_person_is_forgotten_and_sums_stay(database: Database, tmp_path: Path) -> None:
    record(
        database,
        answered("Hi", conversation_id="one", end_user="ann", tenant="red"),
        answered("Hi", conversation_id="one", end_user=None, tenant="red"),
        answered("Hi", conversation_id="two", end_user="bob", tenant="red"),
    )
    check(database, DesiredChecks(1e6, judge="a:b", judge_share=1.0))
    home = Home(tmp_path)
    assert len(collect_person(database, home, "ann")["checks of answers"]) == 2
    erasure = erase_person(database, home, "ann")
    assert erasure.counts["checks of answers"] == 3
    with database.begin() as connection:
        for table in (answer_checks, answer_scores):
            assert connection.execute(select(func.count()).select_from(table)).scalar() == 1
    assert figures(database).checked == 3


async def test_a_controller_checks_and_judges_while_it_runs(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    checks = DesiredChecks(judge="tests.quality.judge_of_length:score", judge_share=1.0)
    wanted = replace(deployment(echo("a")), name=DEPLOYMENT, checks=checks)
    watches = [AnswerWatch(lambda: database, lambda: {DEPLOYMENT: wanted}, dict) for _ in range(2)]
    tasks = [asyncio.ensure_future(watch.run()) for watch in watches]
    # Of today: the judge gives up answers that have waited for a day.
    fresh = answered("Hi", "x" * 5, conversation_id="one", at_s=time.time())
    await asyncio.to_thread(record, database, fresh)
    async with asyncio.timeout(180):
        while not (scores := await asyncio.to_thread(read_scores, database)):
            await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert [one.score for one in scores] == [0.5]
    assert (figures(database).answers, figures(database).checked) == (1, 1)
    database.close()


def test_rows_that_were_erased_meanwhile_leave_nothing(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    entry = answered("Hi", conversation_id="one")
    record(database, entry)
    with database.begin() as connection, permit_deletion(connection):
        connection.execute(delete(requests))
    assert check(database) == 0
    assert describe_quality(database, NOON_S)["versions"] == []
    database.close()
