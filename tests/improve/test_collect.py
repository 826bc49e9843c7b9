"""What becomes of feedback of which too little is left to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.control.running import deployment, echo, service, want
from tests.improve.test_trusted import add, give, make_turn
from tests.release.traffic import World
from thrifty.artifacts import Store
from thrifty.db import Database, open_database
from thrifty.db.feedback import Feedback, Item, read_judged, save_feedback
from thrifty.db.improve import NOTHING, begin_step, create_run, end_step, find_active_run
from thrifty.home import Home
from thrifty.improve.collect import choose_method, collect, count_rows
from thrifty.improve.guards import Sifted
from thrifty.improve.turn import Turn, TurnEnds
from thrifty.spec.improve import ImproveGuardsSpec


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


def test_a_method_that_is_left_with_too_few_rows_is_not_chosen(
    database: Database, home: Home
) -> None:
    world, turn = begin(database, home, rows=10, guards={"own": 0.0})
    run = find_active_run(database, "m")
    assert run is not None
    begin_step(database, run, "compress", {})
    end_step(database, run, "compress", {"label": "m@v1"})
    for number in range(12):
        for version, said, up in (("m@v1", "Yes, surely.", True), ("old", "No idea.", False)):
            give(world, f"Is it {number}?", said, up=up, user=f"u{number % 4}", version=version)
    sifted = Sifted(read_judged(database, deployment="m"), 4)

    def choose() -> str:
        counts, skipped = count_rows(turn, sifted)
        assert counts.pairs == 12
        return choose_method(turn, counts, skipped, sifted)

    assert choose() == "dpo", "nothing else is left either, which 'collect' says"
    for number in range(6):
        give(world, f"Is it not {number}?", "Yes.", up=True, user=f"u{number % 4}", version="old")
    sifted = Sifted(read_judged(database, deployment="m"), 4)
    assert choose() == "kto", "all pairs teach what a version of the loop said"
    turn = replace(turn, settings=turn.settings.model_copy(update={"guards": ImproveGuardsSpec(own=1)}))  # fmt: skip
    assert choose() == "dpo"


def test_feedback_of_which_every_row_is_too_long_is_nothing(database: Database, home: Home) -> None:
    world, turn = begin(database, home, train={"window": 32})
    for number in range(60):
        user = f"user-{number % 6}"
        response = give(world, f"What is number {number}?", "No idea.", up=False, user=user)
        correct(world, response, f"It is {number}, and so on, and so forth.", user)
    with pytest.raises(TurnEnds, match="no row is left of 60 records") as ended:
        collect(turn)
    assert ended.value.state == NOTHING
