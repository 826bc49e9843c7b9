"""What templates take is found by rendering, and ends of turns likewise."""

from __future__ import annotations

from typing import Any

import pytest

from tests.text import templates
from thrifty.text.chat_template import ChatTemplate, Habits, TemplateRefusal

ALL = Habits(*[True] * 10)


def habits_of(source: str) -> Habits:
    return ChatTemplate(source, {}).habits


def without(**changes: bool) -> Habits:
    import dataclasses

    return dataclasses.replace(ALL, **changes)


NO_CALLS = {"takes_objects": False, "takes_text": False, "encodes_values": False,
            "takes_long_ids": False, "writes_tools": False}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (templates.CHATML, without(**NO_CALLS)),
        (templates.NEEDS_USER, without(**NO_CALLS, takes_system_alone=False)),
        (templates.HERMES, without(encodes_values=False)),
        (templates.ENCODING, without(takes_text=False)),
        (templates.JOINING, without(takes_objects=False, encodes_values=False)),
        (templates.ITEMS, without(takes_text=False, encodes_values=False)),
        (templates.SINGLE, without(takes_text=False)),
        (
            templates.NINE,
            Habits(takes_system=True, takes_system_alone=True, writes_tools=True,
                   takes_objects=True, encodes_values=True),
        ),
        (templates.ALTERNATING, Habits()),
        (
            templates.IGNORING,
            Habits(takes_assistant_first=True, takes_repeats=True),
        ),
        ("nothing at all", Habits()),
        ("{{ raise_exception('no') }}", Habits()),
    ],
    ids=range(12),
)  # fmt: skip
def test_habits_are_found(source: str, expected: Habits) -> None:
    assert habits_of(source) == expected


ENDS = {"<|im_end|>": 2, "<|im_start|>": 1, "</s>": 3, "<|eot_id|>": 4, "<|user|>": 5, "": 9}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (templates.CHATML, (2,)),
        (templates.ALTERNATING, (3,)),
        (templates.SINGLE, (4,)),
        (templates.IGNORING, ()),
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", (3,)),
        # Only the user's next turn shows the end.
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}", (5,)),
        ("{{ raise_exception('no') }}", ()),
        ("nothing at all", ()),
    ],
)
def test_what_is_written_behind_an_answer_ends_it(source: str, expected: Any) -> None:
    assert ChatTemplate(source, {"eos_token": "</s>"}).find_ends(ENDS) == expected


def test_longest_token_behind_an_answer_counts() -> None:
    source = "{% for m in messages %}{{ m.content }}<end_of_turn>{% endfor %}"
    tokens = {"<end": 1, "<end_of_turn>": 2, "<end_of_turn>x": 3}
    assert ChatTemplate(source, {}).find_ends(tokens) == (2,)


def test_settings_of_a_request_do_not_replace_the_messages() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ tools }}{{ other }}", {"bos_token": "b"})
    extra = {"messages": [{"content": "theirs"}], "tools": 7, "other": "theirs"}
    assert template.render([{"content": "ours"}], extra=extra) == "oursNonetheirs"


def test_refusal_says_what_the_template_says() -> None:
    with pytest.raises(TemplateRefusal, match="roles must alternate"):
        ChatTemplate(templates.ALTERNATING, {}).render([{"role": "assistant", "content": "a"}])
