"""What `POST /v1/feedback` takes, and that it names what it does not take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.db.feedback import Item
from thrifty.feedback.parse import parse_feedback
from thrifty.openai.errors import WireError


def test_one_object_may_hold_several_kinds() -> None:
    found = parse_feedback(
        {
            "id": "a", "response_id": "r", "thumbs": "down", "rating": 2, "category": "facts",
            "comment": "wrong city", "correction": "Paris", "event": "edited", "name": "length",
            "value": 3, "tags": {"b": "2", "a": "1"}, "user": "ann",
        }
    )  # fmt: skip
    assert found.items == (
        Item("thumbs", 0.0), Item("rating", 2.0), Item("category", text="facts"),
        Item("comment", text="wrong city"), Item("correction", text="Paris"),
        Item("event:edited", 1.0), Item("score:length", 3.0),
    )  # fmt: skip
    assert (found.client_id, found.user, found.tags) == ("a", "ann", '{"a":"1","b":"2"}')


@pytest.mark.parametrize(
    ("value", "item"),
    [
        (True, Item("score:x", 1.0)),
        (-0.5, Item("score:x", -0.5)),
        ("good", Item("score:x", text="good")),
    ],
)
def test_a_score_is_a_number_a_boolean_or_a_category(value: Any, item: Item) -> None:
    assert parse_feedback({"response_id": "r", "name": "x", "value": value}).items == (item,)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"thumbs": "up"}, "response_id"),
        ({"response_id": "r", "conversation_id": "c", "thumbs": "up"}, "response_id"),
        ({"response_id": "r"}, "thumbs"),
        ({"response_id": "r", "thumbs": "UP"}, "thumbs"),
        ({"response_id": "r", "thumbs": ["up"]}, "thumbs"),
        ({"response_id": "r", "rating": 6}, "rating"),
        ({"response_id": "r", "rating": True}, "rating"),
        ({"response_id": "r", "rating": float("nan")}, "rating"),
        ({"response_id": "r", "event": "seen"}, "event"),
        ({"response_id": "r", "event": {}}, "event"),
        ({"response_id": "r", "value": 1}, "name"),
        ({"response_id": "r", "name": "x"}, "value"),
        ({"response_id": "r", "name": "x", "value": {}}, "value"),
        ({"response_id": "r", "name": "x", "value": 10**400}, "value"),
        ({"response_id": "r", "name": "a b", "value": 1}, "name"),
        ({"response_id": "r", "comment": ""}, "comment"),
        ({"response_id": "r", "comment": "x" * 10_001}, "comment"),
        ({"conversation_id": "c", "correction": "x"}, "correction"),
        ({"response_id": "r", "thumbs": "up", "user": 7}, "user"),
        ({"response_id": "r", "thumbs": "up", "tags": {"a": 1}}, "tags"),
        ({"response_id": "r", "thumbs": "up", "tags": ["a"]}, "tags"),
        ({"response_id": "r", "thumbs": "up", "score": 1}, "score"),
        ({"response_id": 5, "thumbs": "up"}, "response_id"),
    ],
)
def test_a_fault_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(WireError) as caught:
        parse_feedback(body)
    assert (caught.value.status, caught.value.param) == (400, param)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["id", "response_id", "conversation_id", "thumbs", "rating", "category", "comment",
     "correction", "event", "name", "value", "tags", "user", "other"]
)  # fmt: skip


@given(st.dictionaries(NAMES, JSON))
def test_garbage_is_a_400_and_never_anything_else(body: dict[str, Any]) -> None:
    found: Any = None
    try:
        found = parse_feedback(body)
    except WireError as error:
        found = error
    if isinstance(found, WireError):
        assert found.status == 400
        assert found.encode()
    else:
        assert found.items


def test_texts_that_no_database_stores_are_mended() -> None:
    found = parse_feedback({"response_id": "r", "comment": "a\0", "user": "\ud800", "id": "\0"})
    assert found.items == (Item("comment", text="a\ufffd"),)
    assert (found.user, found.client_id) == ("\ufffd", "\ufffd")
