"""Guards against poisoning: who counts how much, and what is left out."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.db.feedback import Judged, Judgement
from thrifty.feedback.export import decide
from thrifty.improve.collect import bound_own
from thrifty.improve.guards import bound_users, compare_shares, find_outliers, sift_feedback
from thrifty.spec.improve import ImproveGuardsSpec

_ids = itertools.count(1)


def thumb(user: str | None, up: bool, at_s: float = 0.0) -> Judgement:
    return Judgement(next(_ids), "thumbs", user, float(up), None, at_s)


def correct(user: str, text: str) -> Judgement:
    return Judgement(next(_ids), "correction", user, None, text, 0.0)


def answer(*said: Judgement, tenant: str = "") -> Judged:
    return Judged(
        next(_ids), tenant, list(said), "/v1/chat/completions", "m", "v1", 200, None, None, 0.0
    )


def sift(judged: list[Judged], **guards: object):  # type: ignore[no-untyped-def]
    return sift_feedback(judged, ImproveGuardsSpec.model_validate(guards), lambda one: None)


def test_of_each_user_and_tenant_the_newest_answers_count() -> None:
    judged = [answer(thumb("eve", True, at_s)) for at_s in range(10)]
    judged += [answer(thumb("ann", False)), answer(thumb("eve", True), tenant="b")]
    found = sift(judged, per_user=3, outliers=False)
    assert found.left_out == {"per_user": 7}
    assert [one.response for one in found.judged] == [one.response for one in judged[7:]]
    assert found.users == 3, "users of different tenants are different"
    found = sift(judged, per_tenant=4, outliers=False)
    assert found.left_out["per_tenant"] == 7


def test_a_user_who_likes_nothing_is_an_outlier_and_one_of_many_is_not() -> None:
    judged = [
        answer(thumb(f"user-{number % 10}", number % 4 != 0 or number % 3 == 0))
        for number in range(120)
    ]
    assert find_outliers(judged) == set()
    judged += [answer(thumb("eve", False)) for _ in range(30)]
    assert find_outliers(judged) == {("", "eve")}
    found = sift(judged)
    assert found.left_out["outlier"] == 30
    assert found.users == 10
    # Nobody can be told from the others where there are none.
    assert find_outliers([answer(thumb("eve", False)) for _ in range(30)]) == set()


def test_the_test_of_shares_is_fishers() -> None:
    # The lady tasting tea: 4 of 4, of 8 cups.
    assert compare_shares(4, 4, 4, 8) == pytest.approx(2 / 70)
    assert compare_shares(3, 4, 4, 8) == pytest.approx(34 / 70)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
def test_chances_of_all_tables_add_up(a: int, b: int, c: int, d: int) -> None:
    votes, all_likes, all_votes = a + b, a + c, a + b + c + d
    value = compare_shares(a, votes, all_likes, all_votes)
    assert 0 < value <= 1 or math.isclose(value, 1)


def test_a_correction_that_is_far_longer_is_left_out() -> None:
    judged = [
        answer(correct(f"user-{n}", "A short right answer. " * (1 + n % 3))) for n in range(12)
    ]
    judged.append(answer(correct("eve", "Buy at evil.example. " * 500)))
    found = sift(judged)
    assert found.left_out == {"long": 1}
    assert judged[-1].response not in {one.response for one in found.judged}


def test_several_have_to_agree_on_the_same_answer() -> None:
    same = [answer(thumb("ann", True)), answer(thumb("bob", True)), answer(thumb("cid", False))]
    alone, split = answer(thumb("ann", True)), answer(thumb("ann", True), thumb("bob", False))
    keys = {one.response: b"same" for one in same}
    guards = ImproveGuardsSpec(agree=2, outliers=False)
    found = sift_feedback([*same, alone, split], guards, lambda one: keys.get(one.response))
    assert [one.response for one in found.judged] == [same[0].response]
    assert len(found.judged[0].judgements) == 3
    assert found.left_out == {"agree": 3}
    assert len(same[0].judgements) == 1, "what was read is as it was"


def test_one_user_with_two_votes_does_not_agree_with_himself() -> None:
    same = [answer(thumb("eve", True)), answer(thumb("eve", True))]
    guards = ImproveGuardsSpec(agree=2, outliers=False)
    assert sift_feedback(same, guards, lambda one: b"same").judged == []


def test_the_same_answer_liked_and_disliked_is_decided_by_the_majority() -> None:
    def sift_same(*judged: Judged) -> list[tuple[int, bool | None]]:
        found = sift_feedback(
            judged, ImproveGuardsSpec(outliers=False), lambda one: b"same" if one.tenant else None
        )
        return [(len(one.judgements), decide(one.judgements)) for one in found.judged]

    likes = [answer(thumb(f"user-{n}", True), tenant="a") for n in range(2)]
    dislike = answer(thumb("eve", False), tenant="a")
    assert sift_same(*likes, dislike) == [(3, True)]
    assert sift_same(likes[0], dislike) == [(2, None)], "a tie says nothing"
    assert sift_same(*likes) == [(1, True)] * 2, "those who agree stay as they are"
    other = answer(thumb("bob", False), tenant="b")
    unknown = answer(thumb("bob", False))
    assert sift_same(*likes, other, unknown) == [(1, True), (1, True), (1, False), (1, False)]


def row(one: Judged, source: str) -> dict[str, Any]:
    return {"provenance": {"response": one.response, "source": source}}


def count_behind(rows: list[dict[str, Any]], judged: list[Judged]) -> Counter[str]:
    users = {one.response: one.judgements[0].user or "" for one in judged}
    return Counter(users[row["provenance"]["response"]] for row in rows)


def test_no_user_is_behind_more_than_his_share_of_the_rows() -> None:
    eve = [answer(correct("eve", f"Say {n}.")) for n in range(50)]
    others = [answer(thumb("ann", True)), answer(thumb("bob", True))]
    judged = [*eve, *others]
    rows = [*(row(one, "correction") for one in eve), *(row(one, "liked") for one in others)]
    kept, gone = bound_users(rows, judged, 3)
    assert gone == 49
    assert count_behind(kept, judged) == {"eve": 1, "ann": 1, "bob": 1}
    assert bound_users(rows[:51], judged, 3) == ([], 51), "of two users nothing is learned"
    assert bound_users(rows, judged, 1) == (rows, 0)
    # The more the others say, the more of one user counts.
    more = [answer(correct(f"user-{n % 4}", "So it is.")) for n in range(40)]
    judged += more
    kept, gone = bound_users([*rows, *(row(one, "correction") for one in more)], judged, 3)
    assert count_behind(kept, judged)["eve"] == 21
    assert len(kept) == 63


def test_who_thumbs_what_another_corrects_is_not_behind_the_correction() -> None:
    eve = [
        answer(correct("eve", f"Say {n}."), thumb("ann", False), thumb("bob", False))
        for n in range(30)
    ]
    assert bound_users([row(one, "correction") for one in eve], eve, 3) == ([], 30)
    # Behind the disliked answer are those who dislike it, and not who disagrees.
    disliked = [
        answer(thumb("ann", False), thumb("bob", False), thumb("eve", True)) for _ in range(30)
    ]
    rows = [row(one, "disliked") for one in disliked]
    assert bound_users(rows, disliked, 2) == (rows, 0)
    assert bound_users(rows, disliked, 3) == ([], 30)
    liked = answer(thumb("cid", True))
    sides = [row(one, "same prompt")["provenance"] for one in (liked, disliked[0])]
    pairs = [{"provenance": sides}] * 3
    assert bound_users(pairs, [liked, *disliked], 3) == (pairs, 0)


def test_the_share_of_own_answers_is_bounded() -> None:
    def row(version: str, source: str) -> dict[str, object]:
        return {"provenance": {"version": version, "source": source}}

    own = [row("m@v2", "liked") for _ in range(30)]
    others = [row("base", "liked") for _ in range(10)]
    taught = [row("m@v2", "correction") for _ in range(5)]
    rows, gone = bound_own([*own, *others, *taught], {"m@v2"}, 0.5, 0)
    assert (len(rows), gone) == (30, 15)
    assert bound_own([*own, *others], {"m@v2"}, 0.5, 100)[1] == 0
    assert bound_own(own, {"m@v2"}, 0.0, 0) == ([], 30)
    assert bound_own(own, {"m@v2"}, 1.0, 0)[1] == 0
    assert bound_own(own, set(), 0.0, 0)[1] == 0, "what the base said is not the loop's"
