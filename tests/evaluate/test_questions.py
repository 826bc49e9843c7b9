"""Questions from files, and the twenty that everyone reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.errors import EvaluationError
from thrifty.evaluate.questions import (
    LONG_TOKENS,
    SHORT_REQUEST,
    SHORT_TOKENS,
    TWENTY,
    Question,
    digest_questions,
    read_questions,
)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "\n")
    return path


def test_the_twenty_are_twenty_and_of_many_kinds() -> None:
    assert len(set(TWENTY)) == 20
    assert any(one.messages[0][0] == "system" for one in TWENTY)
    assert any(len(one.messages) > 2 for one in TWENTY)
    for one in TWENTY:
        assert one.messages[-1][0] == "user"
        assert one.max_tokens == LONG_TOKENS
        assert not one.answers


def test_questions_conversations_and_items_of_tasks_are_read(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    path = write(
        tmp_path / "q.jsonl",
        {"question": "Who?", "answers": ["He", "him"]},
        {"messages": talk},
        {"prompt": "Q: what is it?\nA:", "answers": ["x"], "stop": ["\n"]},
        {"question": "Who?", "answers": ["He", "him"]},
    )
    first, second, third = read_questions(path)
    assert first == Question((("user", "Who?"),), ("He", "him"))
    assert second.messages == (("system", "Be brief."), ("user", "Hello?"))
    assert second.text == "system: Be brief.\nuser: Hello?"
    assert third == Question((("user", "what is it?"),), ("x",))
    assert read_questions(path, 2) == [first, second]


def test_requests_are_greedy_and_bounded_and_short_ones_ask_for_a_name() -> None:
    short = Question((("user", "Who?"),), ("He",))
    open_one = Question((("user", "Who?"),))
    assert short.request["temperature"] == open_one.request["temperature"] == 0
    assert short.request["max_tokens"] == SHORT_TOKENS < open_one.request["max_tokens"]
    assert open_one.request["messages"] == [{"role": "user", "content": "Who?"}]
    (said,) = short.request["messages"]
    assert said == {"role": "user", "content": f"Who? {SHORT_REQUEST}"}
    assert digest_questions([short]) != digest_questions([open_one])
    assert digest_questions([short]) != digest_questions([Question(short.messages, ("She",))])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "not a JSON object"),
        ({"answers": ["x"]}, "a question has 'question' or 'messages'"),
        ({"question": " "}, "a question has 'question' or 'messages'"),
        ({"question": "Q", "answers": "x"}, "'answers' must be a list of strings"),
        ({"question": "Q", "answers": [""]}, "'answers' must be a list of strings"),
        ({"messages": []}, "must be a list that ends with one of the user"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "ends with one of the user"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message has a 'role'"),
        ({"messages": [{"role": "user", "content": [1]}]}, "a message has a 'role'"),
    ],
)
def test_what_is_no_question_is_told_with_its_line(
    tmp_path: Path, record: Any, message: str
) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "fine"}, record)
    with pytest.raises(EvaluationError, match=f"q.jsonl, line 2: .*{message}"):
        read_questions(path)


def test_files_without_questions_are_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="contains no questions"):
        read_questions(write(tmp_path / "none.jsonl"))
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_questions(tmp_path / "missing.jsonl")
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(EvaluationError, match="not a line of JSON"):
        read_questions(tmp_path / "bad.jsonl")
