"""Drift of meaning: what an encoder makes of questions and answers, compared by day."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select, update

from tests.control.running import deployment, echo
from tests.engines.test_embeddings import running
from tests.quality.answers import DEPLOYMENT, NOON_S, answered, check, record
from thrifty.db import Database, open_database
from thrifty.db.desired_state import DesiredChecks
from thrifty.db.fleet import ReplicaRow, save_deployment, save_replicas
from thrifty.db.rollups import DAY_S
from thrifty.db.tables import answer_vectors
from thrifty.db.vectors import drop_vectors, read_unembedded, read_vectors, save_vectors
from thrifty.erase.erase import erase_person
from thrifty.home import Home
from thrifty.quality.drift import compare_meanings, compare_periods, make_period
from thrifty.quality.embedding import Embedding

CHECKS = DesiredChecks(1e6, encoder="bert")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    yield opened
    opened.close()


@pytest.mark.engine
async def test_an_encoder_embeds_what_chance_chose(database: Database, tmp_path: Path) -> None:
    wanted = replace(deployment(echo("a")), name=DEPLOYMENT, checks=CHECKS)
    answers = [answered(f"Question {n}", conversation_id=f"c{n}") for n in range(20)]
    record(database, *answers, answered(None, conversation_id="without"))
    await asyncio.to_thread(check, database, CHECKS)
    embedding = Embedding()
    assert not await asyncio.to_thread(embedding.embed_next, database, wanted), "no encoder yet"
    async with running(tmp_path / "encoder") as url:
        save_deployment(database, replace(deployment(echo("a")), name="bert").row)
        row = ReplicaRow("e-0", "bert", "echo", "a", "a", None, url, "ready")
        save_replicas(database, [row], routing_changed=True)
        embedding = Embedding()
        while await asyncio.to_thread(embedding.embed_next, database, wanted):
            pass
    found = read_vectors(database, DEPLOYMENT, NOON_S, NOON_S + 1)
    assert [one.group for one in found] == [f"c{n}" for n in range(20)]
    assert all(np.linalg.norm(one.asked) == pytest.approx(1, abs=1e-2) for one in found)
    assert read_unembedded(database, DEPLOYMENT, 9) == []
    erase_person(database, Home(tmp_path), "ann")
    assert read_vectors(database, DEPLOYMENT, 0, NOON_S + 1) == []


def fill_days(database: Database, shift: float) -> None:
    """Four days of which the last may be another."""
    chance = np.random.default_rng(4)
    for day in range(4):
        at_s = NOON_S + DAY_S * day
        record(
            database,
            *(answered("Hi", at_s=at_s + n, conversation_id=f"{day}-{n}") for n in range(60)),
        )
        check(database, CHECKS)
        with database.begin() as connection:
            query = select(answer_vectors.c.id).where(answer_vectors.c.answer.is_(None))
            numbers = list(connection.execute(query).scalars())
        for number in numbers:
            asked, said = chance.normal(0, 1, (2, 16))
            said[0] += shift * (day == 3)
            save_vectors(database, number, asked, said)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_change_of_meaning_is_told(database: Database, shift: float) -> None:
    fill_days(database, shift)
    day = int(NOON_S // DAY_S + 3) * DAY_S
    said = compare_meanings(database, day, DEPLOYMENT, "a")
    asked = compare_meanings(database, day, DEPLOYMENT, "")
    assert [one[:3] for one in said] == [("answer_meaning", 180, 60)]
    assert [one[0] for one in asked] == ["asked_meaning"]
    empty = make_period([])
    (found,) = compare_periods(empty, empty, [], [], said)
    assert found[5] == bool(shift)
    (unchanged,) = compare_periods(empty, empty, [], [], asked)
    assert not unchanged[5]
    drop_vectors(database, NOON_S + DAY_S * 2.5)
    with database.begin() as connection:
        assert connection.execute(select(func.count()).select_from(answer_vectors)).scalar() == 60
        other = update(answer_vectors).values(asked=b"\0\0", answer=b"\0\0")
        connection.execute(other.where(answer_vectors.c.id % 2 == 0))
    assert compare_meanings(database, day, DEPLOYMENT, "a") == []
