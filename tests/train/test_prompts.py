"""What a row is trained on is what the engine is served: token for token, over every template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines.test_prompt import EVIL, TEMPLATES, TOOL, find_tokenizer
from tests.evaluate.test_conversations import DROPPING
from tests.parts import running_server
from thrifty.artifacts.chat_templates import DEFAULT, TOOL_USE
from thrifty.curate.recipe import Fields
from thrifty.curate.shapes import Misshapen, make_row
from thrifty.db import open_database
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.subjects import open_subjects
from thrifty.engines.echo.backend import TEMPLATE, EchoBackend
from thrifty.engines.openvino.adapter import HONOURS
from thrifty.engines.server.app import ModelServer
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import parse_tools
from thrifty.feedback.export import Form, Skipped, export_rows
from thrifty.home import Home
from thrifty.observe.texts import make_texts
from thrifty.openai.fields import Endpoint
from thrifty.train.examples import Example, encode_row
from thrifty.train.rows import Method, Row, SetAside, parse_row

TWO = json.dumps({DEFAULT: TEMPLATES["CHATML"], TOOL_USE: TEMPLATES["HERMES"]})
"""A model with a template for tools besides the plain one."""
OPENING = TEMPLATES["CHATML"] + "{% if add_generation_prompt %}<think>\n{% endif %}"
"""The prompt begins the reasoning, which earlier answers lack."""
ALL = {**TEMPLATES, "ECHO": TEMPLATE, "DROPPING": DROPPING, "OPENING": OPENING, "TWO": TWO}

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "How is Paris?"}
ANSWER = {"role": "assistant", "content": "Grey."}
CALL = {
    "role": "assistant", "content": None,
    "tool_calls": [{"id": "call_1", "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
}  # fmt: skip
RESULT = {"role": "tool", "content": "Rain.", "tool_call_id": "call_1"}
AGAIN = [{"role": "user", "content": "And Rome?"}, {"role": "assistant", "content": "Sunny."}]
THINKING = {"role": "assistant", "content": "Grey.", "reasoning_content": "Winter."}
WEATHER = {"tools": [TOOL]}

CONVERSATIONS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "plain": ([USER, ANSWER], {}),
    "system and turns": ([SYSTEM, USER, ANSWER, *AGAIN], {}),
    "control tokens spelled": ([{**USER, "content": EVIL}, {**ANSWER, "content": EVIL}], {}),
    "a call": ([SYSTEM, USER, CALL], WEATHER),
    "a result": ([USER, CALL, RESULT, ANSWER, *AGAIN], WEATHER),
    "tools unused": ([USER, ANSWER], WEATHER),
    "reasoning": ([USER, THINKING, *AGAIN], {}),
    "settings": ([USER, ANSWER], {"chat_template_kwargs": {"enable_thinking": False}}),
    "spaces": ([{**USER, "content": "  x \n\n"}, {**ANSWER, "content": " y "}], {}),
}


def open_tokenizer(name: str) -> Any:
    return find_tokenizer(json.loads(TWO) if name == "TWO" else ALL[name])


def make_rows(messages: list[Any], more: dict[str, Any]) -> Iterator[tuple[Method, Row]]:
    """The conversation as a row of each method, through the reader."""
    *prompt, answer = messages
    other = {"role": "assistant", "content": "No."}
    records = {
        Method.SFT: {"messages": messages},
        Method.DPO: {"messages": prompt, "chosen": answer, "rejected": other},
        Method.KTO: {"messages": prompt, "completion": [answer], "label": True},
    }
    for method, record in records.items():
        row = parse_row(json.dumps({**record, **more}).encode(), 1, method)
        assert isinstance(row, Row), row
        yield method, row


def list_prompts(example: Example) -> list[list[int]]:
    """The tokens before each answer that is learned."""
    return [text.tokens[:begin] for text in example.texts for begin, _ in text.spans]


@pytest.mark.parametrize("name", ALL)
async def test_prompts_of_rows_are_those_that_a_server_tells(name: str) -> None:
    tokenizer = open_tokenizer(name)
    model = ModelServer("m", EchoBackend(), tokenizer, engine="openvino", honours=HONOURS)
    await model.start()
    compared, told = 0, {}
    async with running_server(model.handle) as (url, _), httpx.AsyncClient() as client:
        for messages, more in CONVERSATIONS.values():
            for method, row in make_rows(messages, more):
                found = encode_row(row, method, tokenizer, 4096)
                if isinstance(found, str):
                    # Only calls that this template writes elsewhere.
                    assert found == "form"
                    assert any("tool_calls" in one for one in messages)
                    continue
                numbers = sorted(row.learned) if method is Method.SFT else [len(messages) - 1]
                served = []
                for number in numbers:
                    body = {"messages": messages[:number], **more}
                    asked = json.dumps(body)
                    if asked not in told:
                        answer = await client.post(f"{url}/tokenize", json=body)
                        assert answer.status_code == 200, answer.text
                        told[asked] = answer.json()["tokens"]
                    served.append(told[asked])
                trained = [one for example in found for one in list_prompts(example)]
                if method is Method.DPO:
                    served *= 2
                assert sorted(trained) == sorted(served), (name, method, messages)
                compared += len(served)
    assert compared > 20


@pytest.mark.parametrize("name", ALL)
def test_answers_are_what_the_template_writes_up_to_the_end_of_the_turn(name: str) -> None:
    tokenizer = open_tokenizer(name)
    ends = tokenizer.find_turn_ends()
    for messages, more in CONVERSATIONS.values():
        _, row = next(make_rows(messages, more))
        found = encode_row(row, Method.SFT, tokenizer, 4096)
        if isinstance(found, str):
            continue
        text = found[0].texts[0]
        whole = build_prompt(
            {"messages": messages, "add_generation_prompt": False, **more}, tokenizer,
            parse_tools(more),
        ).ids  # fmt: skip
        answer = text.tokens[text.answer_begin :]
        if whole[: text.answer_begin] == text.tokens[: text.answer_begin]:
            assert whole[: len(text.tokens)] == text.tokens
        else:
            said = str(messages[-1]["content"])
            assert tokenizer.decode(answer).endswith(said)
        if ends:
            assert [token for token in answer if token in ends] == [answer[-1]]


def test_rows_of_the_request_log_have_the_prompts_that_were_answered(tmp_path: Path) -> None:
    database = open_database(Home(tmp_path).database_url, migrate=True)
    asked: dict[int, dict[str, Any]] = {}
    for messages, more in CONVERSATIONS.values():
        for choice in (None, "none"):
            body = {"messages": messages[:-1], **more}
            if choice is not None:
                body["tool_choice"] = choice
            number = len(asked) + 1
            asked[number] = body
            answer = {"choices": [{"index": 0, "message": messages[-1], "finish_reason": "stop"}]}
            texts = make_texts(Endpoint.CHAT, body, json.dumps(answer).encode())
            assert texts is not None
            values = dict.fromkeys(COLUMNS) | {
                "id": number, "at_s": float(number), "endpoint": Endpoint.CHAT.value, "status": 200,
                "stream": False, "attempts": 1, "e2e_ms": 1.0, "deployment": "m", "version": "v1",
                "tenant": "red", "end_user": "ann",
            }  # fmt: skip
            entry = Entry(tuple(values[name] for name in COLUMNS), texts)
            assert RequestLog(database).write([entry]) == []
            said = Feedback("red", (Item("thumbs", 1.0),), response=number, user="ann")
            save_feedback(database, said)
    rows = list(export_rows(database, Form.SFT, open_subjects(database), Skipped()))
    database.close()
    assert len(rows) == len(asked)
    compared = 0
    for name in ("CHATML", "HERMES", "ECHO"):
        tokenizer = open_tokenizer(name)
        for row in rows:
            body = asked[row["provenance"]["response"]]
            parsed = parse_row(json.dumps(row).encode(), 1, Method.SFT)
            if isinstance(parsed, str):
                assert parsed == "tools", "only calls of tools that the model was not told of"
                assert body["tool_choice"] == "none"
                with pytest.raises(Misshapen, match="no_tools"):
                    make_row(row, "sft", "auto", Fields())
                continue
            kept = make_row(row, "sft", "auto", Fields())
            assert {key: row[key] for key in row if key != "provenance"} == kept
            found = encode_row(parsed, Method.SFT, tokenizer, 4096)
            if isinstance(found, str):
                assert found == "form"
                continue
            served = build_prompt(body, tokenizer, parse_tools(body)).ids
            assert list_prompts(found[-1])[-1] == served, (name, body)
            compared += 1
    assert compared > 40


def test_turns_that_the_template_rewrites_are_examples_of_their_own() -> None:
    messages = [USER, THINKING, *AGAIN]
    _, row = next(make_rows(messages, {}))
    plain = encode_row(row, Method.SFT, open_tokenizer("HERMES"), 4096)
    dropping = encode_row(row, Method.SFT, open_tokenizer("DROPPING"), 4096)
    assert [len(example.texts[0].spans) for example in plain] == [2]
    assert [len(example.texts[0].spans) for example in dropping] == [1, 1]
    tokenizer = open_tokenizer("DROPPING")
    said = [tokenizer.decode(one.texts[0].tokens[one.texts[0].answer_begin :]) for one in dropping]
    assert "Winter." in said[1]
    assert "Winter." not in said[0]


def test_an_answer_ends_the_reasoning_that_its_prompt_begins() -> None:
    tokenizer = open_tokenizer("OPENING")
    for answer, said in ((ANSWER, "\n</think>\n\nGrey."), (THINKING, "Winter.\n</think>\n\nGrey.")):
        _, row = next(make_rows([USER, answer], {}))
        (example,) = encode_row(row, Method.SFT, tokenizer, 4096)
        text = example.texts[0]
        assert isinstance(example, Example)
        written = tokenizer.decode(text.tokens[text.answer_begin :], skip_special_tokens=False)
        assert written == f"{said}<|im_end|>"


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=40), said=st.text(min_size=1, max_size=40).filter(str.strip))
def test_any_text_is_asked_and_learned_alike(text: str, said: str) -> None:
    for name in ("CHATML", "NINE", "HERMES", "OPENING"):
        tokenizer = open_tokenizer(name)
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": said}]
        record = json.dumps({"messages": messages}).encode()
        row = parse_row(record, 1, Method.SFT)
        assert isinstance(row, Row)
        found = encode_row(row, Method.SFT, tokenizer, 4096)
        (prompt,) = list_prompts(found[0])
        assert prompt == build_prompt({"messages": messages[:1]}, tokenizer, parse_tools({})).ids


def test_rows_that_are_too_long_are_set_aside() -> None:
    tokenizer, aside = open_tokenizer("CHATML"), SetAside()
    _, row = next(make_rows([USER, ANSWER], {}))
    assert encode_row(row, Method.SFT, tokenizer, 30) == "too_long"
    aside.note("too_long", 7)
    assert aside.describe() == ["set aside: 1 row longer than the window (line 7)"]
