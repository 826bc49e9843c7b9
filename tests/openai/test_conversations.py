"""Conversations keep their id and their version, and versions get shares by their weights."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.openai.conversations import ID_CHARS, Conversations, choose_version
from thrifty.openai.fields import Endpoint

CONVERSATIONS = Conversations(bytes(range(32)))
COUNT = 100_000
Z = 4.5
"""Standard errors that a share may deviate: by chance one sample in 150,000 deviates more."""


def chat(*messages: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} for r, c in messages], **fields}


def identify(
    body: dict[str, Any],
    header: bytes | None = None,
    tenant: str = "red",
    endpoint: Endpoint = Endpoint.CHAT,
) -> str:
    return CONVERSATIONS.identify(tenant, header, endpoint, body)


OPENING = (("system", "Be brief."), ("user", "Hello"))


def test_later_messages_stay_in_the_conversation() -> None:
    first = identify(chat(*OPENING, user="u"))
    assert len(first) == ID_CHARS == 32
    later = chat(*OPENING, ("assistant", "Hi"), ("user", "Who are you?"), user="u", temperature=1)
    assert identify(later) == first
    assert identify(chat(*OPENING, safety_identifier="u")) == first, "the same user"
    others = [
        identify(chat(*OPENING, user="v")),
        identify(chat(*OPENING)),
        identify(chat(*OPENING, user="u"), tenant="blue"),
        identify(chat(OPENING[0], ("user", "Hello!"), user="u")),
        identify(chat(OPENING[1], user="u")),
        identify(chat(("user", "Be brief."), ("user", "Hello"), user="u")),
        identify({"prompt": "Hello", "user": "u"}, endpoint=Endpoint.COMPLETIONS),
        identify({"input": "Hello", "user": "u"}, endpoint=Endpoint.EMBEDDINGS),
    ]
    assert len({first, *others}) == len(others) + 1


def test_content_may_be_parts_and_be_missing() -> None:
    parts = [{"type": "text", "text": "Hello"}]
    assert identify(chat(("user", parts))) == identify(chat(("user", copy.deepcopy(parts))))
    assert identify(chat(("user", parts))) != identify(chat(("user", parts * 2)))
    assert identify(chat(("assistant", None), ("user", "x"))) != identify(chat(("user", "x")))


@pytest.mark.parametrize(
    ("prompt", "same", "other"),
    [
        ("a" * 256, "a" * 300, "a" * 255),
        (["a" * 256], ["a" * 300], ["a" * 256, "b"]),
        ([1] * 256, [1] * 300, [1] * 255),
        ([[1] * 256, [2]], [[1] * 300, [2]], [[1] * 256, [3]]),
    ],
)
def test_the_beginning_of_a_prompt_identifies_the_conversation(
    prompt: Any, same: Any, other: Any
) -> None:
    def of(value: Any) -> str:
        return identify({"prompt": value}, endpoint=Endpoint.COMPLETIONS)

    assert of(prompt) == of(same) != of(other)


def test_the_whole_input_of_embeddings_identifies_the_conversation() -> None:
    def of(value: Any) -> str:
        return identify({"input": value}, endpoint=Endpoint.EMBEDDINGS)

    assert of("a" * 300) != of("a" * 301)
    assert of(["a", "b"]) != of(["ab"])


def test_query_and_documents_of_a_ranking_identify_the_conversation() -> None:
    def of(query: str, *documents: str) -> str:
        return identify({"query": query, "documents": documents}, endpoint=Endpoint.RERANK)

    assert of("a", "b") == of("a", "b")
    assert len({of("a", "b"), of("b", "a"), of("a", "b", "b"), of("ab", "b")}) == 4


def test_a_client_names_its_conversation() -> None:
    named = identify(chat(("user", "x")), b"session 7")
    assert named == identify(chat(("user", "y")), b"session 7")
    assert named != identify(chat(("user", "x")), b"session 7", tenant="blue")
    assert identify(chat(("user", "x")), b"") == identify(chat(("user", "x")))


@given(st.text(max_size=6), st.text(max_size=6), st.binary(max_size=40))
def test_a_returned_conversation_id_is_accepted(tenant: str, other: str, header: bytes) -> None:
    given_id = identify(chat(("user", "x")), header, tenant)
    assert identify(chat(("user", "y")), given_id.encode(), tenant) == given_id
    assert CONVERSATIONS.is_ours(given_id, tenant)
    assert not CONVERSATIONS.is_ours(header.decode("latin-1"), tenant)
    if other != tenant:
        assert not CONVERSATIONS.is_ours(given_id, other)
        foreign = identify(chat(("user", "y")), given_id.encode(), other)
        assert foreign != given_id
        assert CONVERSATIONS.is_ours(foreign, other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=5) | st.sampled_from(["user", "\ud800"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), below, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip


@given(
    st.sampled_from([*Endpoint]),
    st.dictionaries(st.sampled_from(["messages", "prompt", "input", "user"]), JSON),
)
def test_any_body_has_a_conversation(endpoint: Endpoint, body: dict[str, Any]) -> None:
    found = identify(body, endpoint=endpoint)
    assert found == identify(copy.deepcopy(body), endpoint=endpoint)
    assert CONVERSATIONS.is_ours(found, "red")


# Versions


@pytest.fixture(scope="module")
def conversations() -> list[str]:
    return [CONVERSATIONS._make_id("red", b"%d" % number) for number in range(COUNT)]


def choose_all(conversations: list[str], weights: dict[str, float]) -> list[str]:
    versions = list(weights.items())
    return [choose_version(each, versions)[0] for each in conversations]


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 90, "b": 10},
        {"smol@v1": 1, "smol@v2": 1},
        {"a": 0.5, "b": 0.3, "c": 0.2},
        {"a": 95, "b": 5, "c": 0},
        {"a": 1e-9, "b": 3e-9},
        {f"v{number}": number + 1 for number in range(12)},
    ],
)
def test_shares_match_the_weights(conversations: list[str], weights: dict[str, float]) -> None:
    counts = Counter(choose_all(conversations, weights))
    total = sum(weights.values())
    for label, weight in weights.items():
        share = weight / total
        error = math.sqrt(COUNT * share * (1 - share))
        assert abs(counts[label] - COUNT * share) <= Z * error + 1e-9


@pytest.mark.parametrize("new_weight", [0, 1, 10, 45, 1000])
def test_a_weight_change_moves_the_fewest_conversations(
    conversations: list[str], new_weight: float
) -> None:
    weights = {"a": 60.0, "b": 30.0, "c": 10.0}
    before = choose_all(conversations, weights)
    after = choose_all(conversations, {**weights, "c": new_weight})
    moved = [(x, y) for x, y in zip(before, after, strict=True) if x != y]
    if new_weight <= 10:
        assert all(x == "c" for x, _ in moved)
    else:
        assert all(y == "c" for _, y in moved)
    # No change could move fewer: c's count changes by exactly as many as moved.
    assert len(moved) == abs(Counter(after)["c"] - Counter(before)["c"])


WEIGHTS = st.dictionaries(
    st.text("abcxyz@.-", min_size=1, max_size=4),
    st.floats(0, 1e6) | st.sampled_from([0.0, 1.0]), max_size=6,
)  # fmt: skip


@given(st.text(max_size=10), WEIGHTS, st.data())
def test_the_order_depends_only_on_the_weights(
    conversation: str, weights: dict[str, float], data: st.DataObject
) -> None:
    order = choose_version(conversation, list(weights.items()))
    assert sorted(order) == sorted(label for label, weight in weights.items() if weight > 0)
    shuffled = data.draw(st.permutations(list(weights.items())))
    assert choose_version(conversation, shuffled) == order
    for label in weights:
        # Without one version, the others keep their order: the next one answers.
        rest = [(other, weight) for other, weight in weights.items() if other != label]
        assert choose_version(conversation, rest) == [other for other in order if other != label]


def test_the_next_version_gets_its_share_too(conversations: list[str]) -> None:
    orders = [choose_version(each, [("a", 8), ("b", 1), ("c", 1)]) for each in conversations]
    second = Counter(order[1] for order in orders if order[0] == "a")
    total = second.total()
    assert abs(second["b"] - total / 2) <= Z * math.sqrt(total / 4)


def test_the_secret_is_checked() -> None:
    with pytest.raises(ValueError, match="16 to 64"):
        Conversations(b"short")
