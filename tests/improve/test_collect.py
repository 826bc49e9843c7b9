"""What becomes of feedback of which too little is left to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from tests.control.running import deployment, echo, service, want
from tests.curate.teaching import serving
from tests.erase.test_erase import holders
from tests.improve.test_trusted import add, give, make_turn
from tests.release.traffic import World
from thrifty.artifacts import Store
from thrifty.db import Database, open_database
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.improve import NOTHING, begin_step, create_run
from thrifty.db.subjects import open_subjects
from thrifty.db.tables import requests
from thrifty.erase.erase import Erasure, erase_person
from thrifty.home import Home
from thrifty.improve.collect import collect
from thrifty.improve.turn import Turn, TurnEnds


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    made = open_database(home.database_url, migrate=True)
    yield made
    made.close()


def begin(database: Database, home: Home, **settings: Any) -> tuple[World, Turn]:
    """A service that serves a stored model, and a turn that begins to collect."""
    world = World(database)
    world.prepare()
    artifact = add(Store(home.models), "base", 1.0)[1].id
    old = replace(echo("old", weight=1), artifact=artifact)
    want(database, deployment(old), gateway=service(record_prompts=True))
    run = create_run(database, "m", settings, began_by="command", who="test")
    begin_step(database, run, "collect", {})
    return world, make_turn(database, home, settings, run)


def correct(world: World, number: int, said: str, user: str) -> None:
    item = Item("correction", text=said)
    save_feedback(world.database, Feedback("", (item,), response=number, user=user))


def test_one_row_said_sixty_times_is_one_row(database: Database, home: Home) -> None:
    world, turn = begin(database, home)
    for number in range(60):
        user = f"user-{number % 6}"
        response = give(world, "What is it?", f"No {number}.", up=False, user=user)
        correct(world, response, "It is the seventh of them.", user)
    with pytest.raises(TurnEnds, match="the feedback comes to 1 different rows") as ended:
        collect(turn)
    assert ended.value.state == NOTHING


def test_feedback_of_which_every_row_is_too_long_is_nothing(database: Database, home: Home) -> None:
    world, turn = begin(database, home, train={"window": 32})
    for number in range(60):
        user = f"user-{number % 6}"
        response = give(world, f"What is number {number}?", "No idea.", up=False, user=user)
        correct(world, response, f"It is {number}, and so on, and so forth.", user)
    with pytest.raises(TurnEnds, match="no row is left of 60 records") as ended:
        collect(turn)
    assert ended.value.state == NOTHING


@pytest.mark.parametrize("asked", [True, False], ids=["who asked", "who judged"])
def test_whoever_is_forgotten_while_the_teacher_answers_is_not_learned(
    database: Database, home: Home, asked: bool
) -> None:
    ann, others = "ann-8c1f", 50
    erasures: list[Erasure] = []

    def teach(said: str, body: dict[str, Any]) -> str:
        # The last to be asked: all rows were read before.
        if len(server.asked) == others:
            erasures.append(erase_person(database, home, ann))
        return f"It is {said[8:-1]}, I think."

    with serving(teach) as server:
        teacher = {"url": server.url, "model": "teacher"}
        world, turn = begin(database, home, rows=10, teacher=teacher)
        for number in range(others):
            user = ann if number < 5 and not asked else f"user-{number % 6}"
            asks = f"{ann}s-words" if number < 5 and asked else "What"
            response = give(world, f"{asks} is {number}?", "No idea.", up=False, user=user)
            if number < 5 and asked:
                with database.begin() as connection:
                    mine = requests.c.id == response
                    connection.execute(update(requests).where(mine).values(end_user=ann))
        outputs = collect(turn)
    assert len(erasures) == 1
    assert erasures[0].counts["feedback"] == 5
    assert outputs["taught"]["rows"] == others - 5
    assert outputs["learned"] + outputs["held_out"] == others - 5
    names = {open_subjects(database).name("", ann), ann}
    assert not holders(home.datasets, *names)
    assert not holders(home.data, *names)
