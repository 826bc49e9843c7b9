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
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.data.built import open_set
from thrifty.db import Database, open_database
from thrifty.db.feedback import Feedback, Item, read_judged, save_feedback
from thrifty.db.improve import NOTHING, begin_step, create_run, end_step, find_active_run
from thrifty.db.subjects import open_subjects
from thrifty.db.tables import requests
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import parse_tools
from thrifty.erase.erase import Erasure, erase_person
from thrifty.home import Home
from thrifty.improve.collect import choose_method, collect, count_rows
from thrifty.improve.estimate import describe_turn
from thrifty.improve.guards import Sifted
from thrifty.improve.turn import Turn, TurnEnds, leave_texts
from thrifty.spec.improve import ImproveGuardsSpec
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.examples import encode_row
from thrifty.train.rows import Method, SetAside, read_rows


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    made = open_database(home.database_url, migrate=True)
    yield made
    made.close()


def begin(
    database: Database, home: Home, *, redact: bool = True, **settings: Any
) -> tuple[World, Turn]:
    """A service that serves a stored model, and a turn that begins to collect."""
    world = World(database)
    world.prepare()
    artifact = add(Store(home.models), "base", 1.0)[1].id
    old = replace(echo("old", weight=1), artifact=artifact)
    want(database, deployment(old), gateway=service(record_prompts=True, record_redact=redact))
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


def test_one_user_alone_decides_nothing(database: Database, home: Home) -> None:
    world, turn = begin(database, home, rows=12)
    for number in range(12):
        response = give(world, f"What is number {number}?", "No idea.", up=False, user="eve")
        correct(world, response, f"It is {number}.", "eve")
    for user in ("ann", "bob"):
        give(world, f"What does {user} ask?", "This.", up=True, user=user)
    with pytest.raises(
        TurnEnds, match=r"3 rows are left .* 11 are beyond one user's share"
    ) as ended:
        collect(turn)
    assert ended.value.state == NOTHING
    assert "3 rows are left" in describe_turn(turn)["problem"]


def test_what_is_learned_is_what_was_served_and_judged(database: Database, home: Home) -> None:
    world, turn = begin(database, home, redact=False, rows=12)
    before = [
        {"role": "user", "content": "Who\r\nare you?"},
        {"role": "assistant", "content": "A client wrote this."},
    ]
    asked = "Cafe\u0301 number {} at\r\n+49 30 901820?\x0b"
    for number in range(16):
        user = "eve" if number < 8 else f"user-{number % 4}"
        given = {"up": False, "user": user, "before": before}
        response = give(world, asked.format(number), "No idea.", **given)
        correct(world, response, f"Aye {number}.", user)
    found = collect(turn)
    assert found["method"] == "sft"
    assert found["no_row"] == {"beyond_share": 4}, "eve is behind a third of twelve rows"
    built = open_set(home.datasets, found["data"])
    assert built.count() == 12
    _, artifact = Store(home.models).find("base")
    folder = home.root / "tokenizer"
    folder.mkdir()
    write_tokenizer(Store(home.models).folder_of(artifact.id), folder, artifact)
    tokenizer = TextTokenizer.load(folder)
    served = {
        tuple(build_prompt({"messages": [*before, said]}, tokenizer, parse_tools({})).ids)
        for number in range(16)
        for said in [{"role": "user", "content": asked.format(number)}]
    }
    paths = [built.folder / file.path for file in built.files]
    for row in read_rows(paths, Method.SFT, SetAside()):
        (example,) = encode_row(row, Method.SFT, tokenizer, 512)
        assert not isinstance(example, str)
        (text,) = example.texts
        ((begin_, _),) = text.spans
        assert tuple(text.tokens[:begin_]) in served


def test_texts_are_redacted_where_the_service_redacts(database: Database, home: Home) -> None:
    assert leave_texts(begin(database, home)[1])["redact"] == {}


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
