"""Trusted users' holdout, teachers and triggers: what is never learned, and what judges instead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, update

from tests.artifacts.models import Llama
from tests.control.running import deployment, echo
from tests.curate.teaching import serving
from tests.engines.test_prompt import make_special_tokenizer
from tests.improve.test_guards import answer, thumb
from tests.release.traffic import World
from tests.text import templates
from thrifty.artifacts import Lineage, Store
from thrifty.control.improving import find_due, has_drifted, identify_teacher
from thrifty.curate.build import build_data
from thrifty.db import Database, open_database
from thrifty.db.desired import read_desired
from thrifty.db.drift import DriftLook, save_looks
from thrifty.db.feedback import Feedback, Item, read_judged, save_feedback
from thrifty.db.fleet import ReplicaRow, save_deployment, save_replicas
from thrifty.db.improve import (
    NOTHING,
    begin_step,
    create_run,
    fail_step,
    set_run_state,
)
from thrifty.db.rollups import DAY_S
from thrifty.db.tables import improve_runs, request_texts
from thrifty.engines.machine import detect_machine
from thrifty.errors import DataError
from thrifty.feedback.export import Form
from thrifty.home import Home
from thrifty.improve.collect import choose_method, count_rows
from thrifty.improve.gate.judge import NOT_WORSE, WORSE, decide
from thrifty.improve.gate.trusted import judge_trusted, make_slice
from thrifty.improve.guards import Sifted
from thrifty.improve.taught import make_taught, note_teacher
from thrifty.improve.trusted import build_trusted, is_held_out, list_questions, split_trusted
from thrifty.improve.turn import Turn
from thrifty.spec.improve import ImproveGuardsSpec, ImproveSpec
from thrifty.train.rows import Method, parse_row


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    made = open_database(home.database_url, migrate=True)
    yield made
    made.close()


def test_a_share_of_what_trusted_users_judge_is_held_out_with_its_prompts() -> None:
    guards = ImproveGuardsSpec.model_validate(
        {"trusted": ["ann", {"user": "bob", "tenant": "acme"}]}
    )
    judged = [answer(thumb("ann", True), thumb("eve", False)) for _ in range(200)]
    judged += [answer(thumb("bob", True)) for _ in range(100)]
    judged += [answer(thumb("bob", True), tenant="acme") for _ in range(100)]
    prompts = {one.response: f"What is {place % 300}?" for place, one in enumerate(judged)}
    learned, held, left_out = split_trusted(judged, guards, lambda one: prompts[one.response])
    assert {said.user for one in held for said in one.judgements} == {"ann", "bob"}
    assert all(one.tenant == "acme" for one in held if one.judgements[0].user == "bob")
    assert 60 <= len(held) <= 120
    # What others said of the same prompts is not learned either.
    gone = {prompts[one.response] for one in held}
    assert not gone & {prompts[one.response] for one in learned}
    assert left_out == sum(len(one.judgements) for one in judged) - sum(
        len(one.judgements) for one in learned
    )
    again = split_trusted(list(reversed(judged)), guards, lambda one: prompts[one.response])
    assert {one.response for one in again[1]} == {one.response for one in held}
    nobody = split_trusted(judged, ImproveGuardsSpec(), lambda one: pytest.fail("it is not read"))
    assert nobody == (judged, [], 0)
    assert sum(is_held_out(f"{n}", 0.3) for n in range(1000)) == pytest.approx(300, abs=50)
    assert all(is_held_out(f"{n}", 0.5) for n in range(200) if is_held_out(f"{n}", 0.2))


def test_the_spec_says_who_is_trusted_and_who_teaches() -> None:
    spec = ImproveSpec.model_validate({"guards": {"trusted": "ann"}, "teacher": "deployment:big"})
    assert spec.guards.trusted[0].user == "ann"
    assert json.loads(spec.model_dump_json())["teacher"] == "deployment:big"
    with pytest.raises(ValueError, match="'big' is not 'deployment:NAME'"):
        ImproveSpec.model_validate({"teacher": "big"})
    with pytest.raises(ValueError, match="is not none, noise, auto"):
        ImproveSpec.model_validate({"train": {"augment": "evolve"}})


# When a run begins


def test_drift_begins_a_run_once(database: Database) -> None:
    now_s = 100 * DAY_S + 5000.0
    look = DriftLook(99 * DAY_S, "m", "", "prompt_tokens", 900, 300, 0.4, 1e-9, True)
    calm = DriftLook(98 * DAY_S, "m", "", "prompt_tokens", 900, 300, 0.01, 0.5, False)
    save_looks(database, [look, calm])
    assert has_drifted(database, "m", now_s - DAY_S)
    assert not has_drifted(database, "m", now_s), "a run has begun since"
    assert not has_drifted(database, "other", 0.0)
    assert find_due(database, "m", {"drift": True}, now_s - DAY_S) == "drift"
    assert find_due(database, "m", {"drift": False}, now_s - DAY_S) is None
    run = create_run(database, "m", {}, began_by="drift", who="test")
    set_run_state(database, run, NOTHING)
    with database.begin() as connection:
        connection.execute(update(improve_runs).values(created_s=now_s))
    assert find_due(database, "m", {"drift": True}, 0.0) is None


def test_another_teacher_begins_a_run_once(database: Database, home: Home) -> None:
    world = World(database)
    world.prepare()
    desired = read_desired(database).deployments
    first = identify_teacher("deployment:m", desired)
    assert first is not None
    assert first.startswith("m: old")
    assert identify_teacher("deployment:gone", desired) is None
    other = identify_teacher({"url": "http://b", "model": "big", "key_env": None}, desired)
    assert other == "big at http://b"
    settings = {"teacher": {"url": "http://b", "model": "big"}}
    assert find_due(database, "m", settings, 0.0, other) == "teacher"
    run = create_run(database, "m", settings, began_by="teacher", who="test")
    begin_step(database, run, "collect", {})
    turn = make_turn(database, home, {"teacher": settings["teacher"]}, run)
    note_teacher(turn)
    fail_step(database, run, "collect", "there is too little")
    set_run_state(database, run, NOTHING)
    assert find_due(database, "m", settings, 0.0, other) is None
    assert find_due(database, "m", settings, 0.0, "bigger at http://b") == "teacher"
    assert find_due(database, "m", {}, 0.0, None) is None


# What a teacher answers


def make_turn(database: Database, home: Home, settings: dict[str, Any], run: Any = None) -> Turn:
    return Turn(
        database, home, Store(home.models), detect_machine(), "m",
        ImproveSpec.model_validate(settings), "test", run,
    )  # fmt: skip


def give(
    world: World,
    question: str,
    said: str,
    *,
    up: bool,
    user: str,
    before: Sequence[Any] = (),
    version: str | None = None,
) -> int:
    number, _ = world.answer(version=version)
    prompt = json.dumps([*before, {"role": "user", "content": question}])
    with world.database.begin() as connection:
        connection.execute(
            insert(request_texts).values(
                id=number, at_s=world.clock.wall(), prompt=prompt, answer=said
            )
        )
    thumbs = Item("thumbs", float(up))
    save_feedback(world.database, Feedback("", (thumbs,), response=number, user=user))
    return number


def test_a_teacher_answers_what_users_disliked(database: Database, home: Home) -> None:
    world = World(database)
    world.prepare()
    for number in range(14):
        give(world, f"What is {number}?", "No idea.", up=number < 2, user=f"user-{number % 4}")
    sifted = Sifted(read_judged(database, deployment="m"), 4)
    with serving(lambda said, body: f"It is {said[8:-1]}, I think.") as server:
        settings = {"rows": 10, "teacher": {"url": server.url, "model": "teacher"}}
        turn = make_turn(database, home, settings)
        counts, skipped = count_rows(turn, sifted)
        assert choose_method(turn, counts, skipped, sifted) == "dpo", "disliked are as corrected"
        rows, who = make_taught(turn, Form.DPO, sifted)
        assert who is not None
        assert len(rows) == len(server.asked) == 12
        assert rows[0]["chosen"][0]["content"].startswith("It is ")
        assert rows[0]["rejected"][0]["content"] == "No idea."
        assert rows[0]["provenance"][0]["source"] == "taught"
        assert rows[0]["provenance"][0]["response"]
        again, _ = make_taught(turn, Form.KTO, sifted)
        assert len(server.asked) == 12, "what was answered is not asked again"
        assert {row["label"] for row in again} == {True}
    for useless in ("No idea.", "", "Es tut mir leid, aber ich kann dabei nicht helfen."):
        with serving(lambda said, body, useless=useless: useless) as server:
            turn = make_turn(database, home, {"teacher": {"url": server.url, "model": "teacher"}})
            with pytest.raises(DataError, match=r"of 12 answers of the teacher.*12 are of no use"):
                make_taught(turn, Form.SFT, sifted)


def serve_as(database: Database, label: str, revision: str, url: str) -> None:
    """Have the deployment `big` served there."""
    state = replace(deployment(echo(label, revision)), name="big")
    save_deployment(database, state.row)
    row = ReplicaRow("big-0", "big", "echo", label, revision, None, url, "ready")
    save_replicas(database, [row], routing_changed=True)


def test_a_teacher_is_known_by_its_version_and_not_by_its_port(
    database: Database, home: Home
) -> None:
    world = World(database)
    world.prepare()
    for number in range(12):
        give(world, f"What is {number}?", "No idea.", up=False, user=f"user-{number % 4}")
    sifted = Sifted(read_judged(database, deployment="m"), 4)
    turn = make_turn(database, home, {"teacher": "deployment:big"})

    def count_asked(revision: str, reply: str) -> int:
        with serving(lambda said, body: f"{said} {reply}".strip()) as server:
            serve_as(database, "v1", revision, server.url)
            assert len(make_taught(turn, Form.SFT, sifted)[0]) == 12
            return len(server.asked)

    assert count_asked("r1", "It is so.") == 12
    assert count_asked("r1", "It is so.") == 0, "the same version on another port"
    assert count_asked("r2", "It is so.") == 12


def test_what_a_teacher_refused_is_asked_again(database: Database, home: Home) -> None:
    world = World(database)
    world.prepare()
    for number in range(12):
        give(world, f"What is {number}?", "No idea.", up=False, user=f"user-{number % 4}")
    sifted = Sifted(read_judged(database, deployment="m"), 4)
    mended = False

    def answer(said: str, body: dict[str, Any]) -> Any:
        number = int(said[8:-1])
        if mended or number >= 10:
            return f"It is {said}"
        if number % 2:
            return 400, {"error": {"message": "too long"}}
        return "I'm sorry, but I can't help with that."

    with serving(answer) as server:
        turn = make_turn(database, home, {"teacher": {"url": server.url, "model": "teacher"}})
        for asked in (12, 10):
            server.asked.clear()
            with pytest.raises(DataError, match=r"of 12 answers of the teacher.*10 are of no use"):
                make_taught(turn, Form.SFT, sifted)
            assert len(server.asked) == asked, "what was of use is kept"
        mended = True
        server.asked.clear()
        assert len(make_taught(turn, Form.SFT, sifted)[0]) == 12
        assert len(server.asked) == 10


# The gate

MODEL = Llama(
    vocab=264, layers=1, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=256
)


def test_held_out_judgements_become_a_set_and_their_questions_are_kept_apart(
    database: Database, home: Home
) -> None:
    world = World(database)
    world.prepare()
    for number in range(6):
        give(world, f"What is {number}?", f"It is {number}.", up=True, user="ann")
    turn = make_turn(database, home, {"guards": {"trusted": ["ann"]}})
    held = read_judged(database, deployment="m")
    built = build_trusted(turn, held)
    assert built is not None
    assert (built.kind, built.count(), built.name) == ("kto", 6, "m-trusted")
    assert not list((home.data / "feedback").glob("*.jsonl"))
    with list_questions(turn, held) as files:
        (file,) = files
        assert "What is 3?" in Path(file).read_text()
    assert not Path(file).exists()
    assert build_trusted(turn, []) is None


def add(store: Store, name: str, sure: float) -> Any:
    tensors = {key: np.array(one, np.float32) for key, one in MODEL.make_tensors().items()}
    tensors["model.embed_tokens.weight"] *= np.float32(sure)
    with store.stage(name) as stage:
        folder = MODEL.write_safetensors(stage / "model", tensors=tensors, eos_token_id=257)
        make_special_tokenizer(None).tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(templates.CHATML)
        return store.add(folder, name, Lineage())


@pytest.mark.engine
def test_a_version_that_finds_liked_answers_less_likely_is_worse(
    home: Home, tmp_path: Path
) -> None:
    store = Store(home.models)
    serving_, same, broken = (add(store, name, sure)[0] for name, sure in (("a", 1.0), ("b", 1.001), ("c", 3.0)))  # fmt: skip
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {n}?"}],
         "completion": [{"role": "assistant", "content": f"It is {n * 7}."}], "label": True}
        for n in range(40)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"kind": "kto", "sources": [{"path": str(path)}], "split": {"test": 0}, "deduplicate": {"near": False}}  # fmt: skip
    built = build_data(recipe, "trusted", home=home)
    quiet = lambda _: None  # noqa: E731
    good = judge_trusted(store, built, same, serving_, 0.05, quiet)
    bad = judge_trusted(store, built, broken, serving_, 0.05, quiet)
    assert good is not None
    assert bad is not None
    assert decide([good], 0.05)[0].outcome == NOT_WORSE
    (worse,) = decide([bad], 0.05)
    assert worse.outcome == WORSE
    assert worse.failed
    assert "nats per token" in worse.examples[0]["candidate"]


def test_disliked_answers_count_the_other_way_round() -> None:
    row = parse_row(json.dumps({"prompt": "What?", "completion": "This.", "label": False}).encode(), 1, Method.KTO)  # fmt: skip
    assert not isinstance(row, str)
    rng = np.random.default_rng(1)
    follows = make_slice(0.3 + rng.normal(0, 0.1, 50), [row] * 50, "t", 0.05)
    assert follows.candidate > 0.9
    assert decide([follows], 0.05)[0].outcome == NOT_WORSE
    unsure = make_slice(rng.normal(0, 0.5, 30), [row] * 30, "t", 0.05)
    (found,) = decide([unsure], 0.05)
    assert found.failed
    assert found.needed is not None
    assert found.needed > 30
