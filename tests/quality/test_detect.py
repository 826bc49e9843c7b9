"""The detectors on single answers, and what follows from two requests of a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.quality.answers import said, user
from thrifty.evaluate.answer_forms import fits_schema
from thrifty.quality.detect import FAULTS, Seen, decode_faults, detect, encode_faults
from thrifty.quality.follow import (
    CONTINUED,
    CORRECTED,
    REGENERATED,
    REPHRASED,
    compare_requests,
    is_correction,
)
from thrifty.quality.language import differs, find_language

ENGLISH = "The train to Paris leaves at nine, and you can buy a ticket for it at the station."
GERMAN = "Der Zug nach Paris fährt um neun ab, und die Karte ist auch am Schalter zu haben."
FRENCH = "Le train pour Paris part à neuf heures et vous pouvez acheter un billet dans la gare."
JAPANESE = "パリ行きの電車は九時に出発します。"
RUSSIAN = "Поезд в Париж отправляется в девять часов утра."


def find(answer: str, asked: str = "When does the train leave?", **values: Any) -> list[str]:
    seen = Seen(7, None, asked=asked, choices=[said(answer)], **values)
    return [name for name, fault in detect(seen).items() if fault]


def test_each_fault_is_found_and_a_good_answer_has_none() -> None:
    assert find(ENGLISH) == []
    assert find(" \n") == ["empty"]
    assert find("I'm sorry, but I can't help with that.") == ["refusal"]
    assert find("go on and on and on " * 20) == ["loop"]
    assert find(GERMAN, asked=ENGLISH) == ["language"]
    assert find(GERMAN, asked=f"Translate into German: {ENGLISH}") == []
    assert find("x", finish=["length"]) == ["truncated"]
    assert find("x", finish=["stop"]) == []
    assert find("x", usual=(8, 9)) == ["short"]
    assert find("x", usual=(1, 6)) == ["long"]
    assert find("Sure!", wanted={"type": "json_object"}) == ["format"]
    assert find('{"a": 1}', wanted={"type": "json_object"}) == []
    schema = {"type": "json_schema", "json_schema": {"schema": {"required": ["b"]}}}
    assert find('{"a": 1}', wanted=schema) == ["schema"]


def test_tool_calls_say_something_and_must_be_json() -> None:
    call = {"role": "assistant", "content": None}
    good = {**call, "tool_calls": [{"function": {"name": "f", "arguments": '{"a":1}'}}]}
    bad = {**call, "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]}
    assert not any(detect(Seen(7, None, asked="x", choices=[good])).values())
    found = detect(Seen(7, None, asked="x", choices=[bad]))
    assert [name for name, fault in found.items() if fault] == ["format"]


def test_what_cannot_be_told_is_not_counted() -> None:
    found = detect(Seen(None, None))
    assert found == dict.fromkeys(FAULTS)
    assert detect(Seen(5, None))["truncated"] is None
    assert detect(Seen(5, 5))["truncated"] is True


def test_faults_as_bits() -> None:
    for names in ([], ["empty"], ["loop", "long"], list(FAULTS)):
        assert decode_faults(encode_faults(dict.fromkeys(names, True))) == names


def test_languages() -> None:
    found = [find_language(text) for text in (ENGLISH, GERMAN, FRENCH, JAPANESE, RUSSIAN)]
    assert found == ["en", "de", "fr", "JAPANESE", "CYRILLIC"]
    for unclear in ("OK", "x = f(y) + 3", "Paris.", "1234567890", ENGLISH[:40] + JAPANESE * 2):
        assert find_language(unclear) is None, unclear
    assert differs(ENGLISH, "42") is None
    assert differs(JAPANESE, ENGLISH) is True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "number", "integer", "null"]),
            "minimum": st.integers(-2, 2), "maxLength": st.integers(0, 2),
            "minItems": st.integers(0, 2), "maxProperties": st.integers(0, 2),
            "enum": st.lists(st.integers(-1, 1) | st.booleans() | st.text("ab", max_size=1), min_size=1),
            "required": st.lists(st.sampled_from("abc"), unique=True),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "additionalProperties": st.booleans() | inner, "items": inner | st.booleans(),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
        },
    ),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=150)
@given(VALUES, SCHEMAS)
def test_schemas_are_compared_as_others_do(value: Any, schema: Any) -> None:
    assert fits_schema(value, schema) == Draft202012Validator(schema).is_valid(value)


def test_schemas_refer_to_themselves_and_not_elsewhere() -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    }
    assert fits_schema({"next": {"next": {}}}, tree) is True
    assert fits_schema({"next": {"next": 1}}, tree) is False
    assert fits_schema({}, {"$ref": "http://127.0.0.1:1/x"}) is True
    assert fits_schema({}, {"$ref": "#", "a": 1}) is None, "endless"


QUESTION = user("What is the capital of France?")
TALK = [QUESTION, said("Paris.")]


@pytest.mark.parametrize(
    ("before", "now", "kind"),
    [
        ([QUESTION], [QUESTION], REGENERATED),
        ([QUESTION], [user("Which city is the capital of France?")], REPHRASED),
        ([QUESTION], [*TALK, user("Tell me the capital of France please")], REPHRASED),
        ([QUESTION], [*TALK, user("What is the capital of Spain?")], CONTINUED),
        ([QUESTION], [*TALK, user("no, you got it wrong")], CORRECTED),
        ([QUESTION], [QUESTION, said("Lyon."), user("And Spain?")], CORRECTED),
        ([QUESTION], [*TALK, user("And what about the largest river?")], CONTINUED),
        ([QUESTION], [*TALK, {"role": "tool", "content": "x"}], CONTINUED),
        ([QUESTION], [user("Hi"), said("Hello"), user("?")], None),
        ([], [QUESTION], None),
    ],
)
def test_what_followed(before: Any, now: Any, kind: str | None) -> None:
    assert compare_requests(before, [said("Paris.")], now) == kind


def test_corrections_are_told_from_other_beginnings() -> None:
    for text in ("No, that's not it", "That's wrong", "nope", "Actually, it is 5", "I meant Spain"):
        assert is_correction(text), text
    for text in ("No problem, thanks", "Now the next one", "Non-linear systems?", "That is great"):
        assert not is_correction(text), text
