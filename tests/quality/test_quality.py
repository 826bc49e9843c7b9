"""Canary questions to real servers, and what is made of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.control.running import deployment, echo, service, want
from tests.parts import running_echo
from thrifty.artifacts import Store
from thrifty.db import Database, open_database
from thrifty.db.desired import read_desired
from thrifty.db.desired_state import DesiredQuality
from thrifty.db.fleet import ReplicaRow, save_deployment, save_replicas
from thrifty.db.quality import QualityAnswer, read_answers, read_last_round, save_answers
from thrifty.db.request_queries import RequestFilter, list_requests
from thrifty.errors import EvaluationError
from thrifty.home import Home
from thrifty.quality.ask import load_questions
from thrifty.quality.report import BETTER, SAME, WORSE, summarize
from thrifty.quality.run import QualityChecks


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    opened = open_database(home.database_url, migrate=True)
    yield opened
    opened.close()


def write_questions(path: Path) -> str:
    rows = [
        {"question": "What is the capital of France?", "answers": ["Paris"]},
        {"question": "What is the capital of England?", "answers": ["London"]},
        {"question": "How are you?"},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


async def test_every_live_version_is_asked_on_schedule(
    database: Database, home: Home, tmp_path: Path
) -> None:
    quality = DesiredQuality(write_questions(tmp_path / "questions.jsonl"), every_s=3600.0)
    state = replace(
        deployment(echo("good"), echo("bad", weight=0), echo("gone", weight=0)), quality=quality
    )
    want(database, state, gateway=service())
    save_deployment(database, state.row)
    store = Store(home.models)
    async with running_echo("m", reply="Paris") as good, running_echo("m", reply="...") as bad:
        rows = [
            ReplicaRow(f"m-{label}", "m", "echo", label, label, None, url, "ready")
            for label, url in (("good", good), ("bad", bad))
        ]
        save_replicas(database, rows, routing_changed=True)

        def desired():  # type: ignore[no-untyped-def]
            return read_desired(database).deployments

        for _ in range(2):
            # The second controller goes on with the schedule: nothing is due.
            checks = QualityChecks(lambda: database, desired, home, store)
            task = asyncio.ensure_future(checks.run())
            async with asyncio.timeout(90):
                while len(await asyncio.to_thread(read_last_round, database)) < 2:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.wait({task})
    found = {one.version: one for one in summarize(read_answers(database))}
    assert (found["good"].right, found["good"].asked, found["good"].rounds) == (1, 2, 1)
    assert (found["bad"].right, found["bad"].faults.get("empty")) == (0, 2)
    assert "gone" not in found
    assert list_requests(database, RequestFilter(), limit=10)[0] == []


def test_questions_need_answers(tmp_path: Path, home: Home) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text('{"question": "How are you?"}')
    with pytest.raises(EvaluationError, match="no question with known answers"):
        load_questions(DesiredQuality(str(path)), home.data, Store(home.models))


def make(right: list[bool | None], at_s: float) -> list[QualityAnswer]:
    return [
        QualityAnswer(at_s, "m", "a", "r", "q", place, value, "" if value is not None else "away")
        for place, value in enumerate(right)
    ]


def test_a_change_is_told_and_repeated_answers_are_no_evidence() -> None:
    good = [True] * 20
    (same,) = summarize([row for at in range(50) for row in make(good, at)])
    assert (same.share, same.change, same.rounds) == (1.0, SAME, 50)
    assert 0.7 < same.low < 1
    (worse,) = summarize(make(good, 0) + make([False] * 12 + [True] * 8, 1))
    assert (worse.right, worse.lost, worse.change) == (8, 12, WORSE)
    (few,) = summarize([*make(good, 0), *make([False] * 3 + [True] * 17, 1)])
    assert few.change == SAME
    # Three that fail a hundred times over are still three.
    (still,) = summarize(
        make(good, 0) + [r for at in range(100) for r in make([False] * 3 + [True] * 17, at)]
    )
    assert still.change == SAME
    (better,) = summarize(make([False] * 15, 0) + make([True] * 15, 1))
    assert better.change == BETTER
    (away,) = summarize(make([True, None], 0))
    assert (away.asked, away.failed) == (1, "away")


def test_old_answers_go(database: Database) -> None:
    save_answers(database, make([True, False], 0.0))
    assert read_answers(database) == []
