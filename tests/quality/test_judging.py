"""Judges of stated accuracy: their agreement is measured, and their mean corrected."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.control.running import deployment, echo
from tests.parts import running_echo
from tests.quality.answers import DEPLOYMENT, answered, check, record
from thrifty.db import Database, open_database
from thrifty.db.desired_state import DesiredChecks
from thrifty.db.feedback import TRIAGE, Feedback, Item, save_feedback
from thrifty.db.fleet import ReplicaRow, save_deployment, save_replicas
from thrifty.db.scores import REVIEW, Score, list_unreviewed, read_scores
from thrifty.evaluate.judges import UNUSABLE, JudgeAway, open_judge
from thrifty.quality.judging import Judging, summarize_scores

GOOD_SHARE = 0.7
FUNCTION = "tests.quality.judge_of_length:score"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    yield opened
    opened.close()


def make_scores(kappa: float, count: int, labels: int, seed: int) -> list[Score]:
    """What a judge says that repeats the truth with the chance `kappa`, and else calls an answer good
    as often as it is. Kappa is then just that.
    """
    chance = random.Random(seed)
    made = []
    for number in range(count):
        good = chance.random() < GOOD_SHARE
        says = good if chance.random() < kappa else chance.random() < GOOD_SHARE
        review = float(good) if number < labels else None
        made.append(Score(number, DEPLOYMENT, "a", "j", float(says), review, review))
    chance.shuffle(made)
    return made


@pytest.mark.parametrize("kappa", [0.4, 0.6, 0.8])
def test_the_agreement_of_a_judge_is_measured(kappa: float) -> None:
    held, widths = 0, []
    for seed in range(60):
        (found,) = summarize_scores(make_scores(kappa, 1200, 400, seed))
        assert found.kappa is not None
        held += found.kappa_low <= kappa <= found.kappa_high
        widths.append(found.kappa_high - found.kappa_low)
        assert found.compared == found.labels == 400
    assert held >= 52, "a 95% interval, 60 times"
    assert max(widths) < 0.25


@pytest.mark.parametrize("kappa", [0.4, 0.6, 0.8])
def test_the_mean_of_a_kind_judge_is_corrected(kappa: float) -> None:
    held = 0
    for seed in range(60):
        scores = make_scores(kappa, 1500, 300, seed)
        chance = random.Random(seed)
        # It calls half of what it found bad good, all the same.
        kind = [
            Score(one.id, DEPLOYMENT, "a", "j", 1.0, one.review, one.label)
            if one.score == 0 and chance.random() < 0.5 else one
            for one in scores
        ]  # fmt: skip
        (found,) = summarize_scores(kind)
        assert found.corrected
        assert found.raw is not None
        assert found.raw > GOOD_SHARE + 0.08
        held += found.low <= GOOD_SHARE <= found.high
    assert held >= 57


def test_without_labels_a_mean_is_shown_as_it_is() -> None:
    (found,) = summarize_scores(make_scores(0.8, 300, 10, 1))
    assert not found.corrected
    assert found.mean == found.raw
    assert found.low < GOOD_SHARE < found.high
    (none,) = summarize_scores([Score(1, DEPLOYMENT, "a", "j", UNUSABLE)])
    assert (none.mean, none.scored, none.unusable, none.kappa) == (None, 0, 1, None)


def test_a_function_scores_what_chance_chose(database: Database) -> None:
    checks = DesiredChecks(1e6, judge=FUNCTION, judge_share=1.0, judge_per_hour=10**6)
    answers = [answered("Hi", "x" * n, conversation_id=f"c{n}") for n in (0, 5, 10)]
    record(database, *answers, answered(None, conversation_id="without"))
    check(database, checks)
    wanted = replace(deployment(echo("a")), name=DEPLOYMENT, checks=checks)
    judging = Judging(lambda: database, lambda: {DEPLOYMENT: wanted})
    try:
        while judging.judge_next(wanted):
            pass
    finally:
        judging.close()
    assert [one.score for one in read_scores(database)] == [0.5, 1.0]
    numbers = [one.row[0] for one in answers]
    save_feedback(database, Feedback("", (Item(REVIEW, 1.0),), response=numbers[1]))
    save_feedback(database, Feedback("", (Item(TRIAGE, text="real problem"),), response=numbers[2]))
    assert [(one.review, one.label) for one in read_scores(database)] == [(1, 1), (None, 0)]
    assert [one.id for one in list_unreviewed(database, None, 9)] == [numbers[2]]
    assert list_unreviewed(database, "red", 9) == []


async def test_a_deployment_is_a_judge(database: Database) -> None:
    async with (
        running_echo("judge", reply="4") as good,
        running_echo("judge", reply="fine!") as odd,
    ):
        for url, score in ((good, 0.75), (odd, UNUSABLE)):
            state = replace(deployment(echo("a")), name="judge")
            save_deployment(database, state.row)
            row = ReplicaRow("judge-0", "judge", "echo", "a", "a", None, url, "ready")
            save_replicas(database, [row], routing_changed=True)
            judge = open_judge("deployment:judge", database)
            try:
                assert await asyncio.to_thread(judge.rate, "Hi", "Hello") == score
            finally:
                judge.close()
    with pytest.raises(JudgeAway, match="no deployment"):
        open_judge("deployment:other", database)


def test_a_function_must_return_a_score(database: Database) -> None:
    judge = open_judge("tests.quality.judge_of_length:wrong", database)
    try:
        with pytest.raises(JudgeAway, match="must return a score from 0 to 1"):
            judge.rate("Hi", "Hello")
    finally:
        judge.close()
