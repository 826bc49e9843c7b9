"""Training rows have what else the model was told, so that the prompt that is learned is the one that was
served, token for token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prompt import TEMPLATES, TOOL, find_tokenizer
from tests.feedback.test_export import DOWN, UP, export, say
from thrifty.curate.recipe import Fields
from thrifty.curate.shapes import make_row
from thrifty.db import Database, open_database
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.engines.server.prompt import build_prompt
from thrifty.engines.server.tools import parse_tools
from thrifty.feedback.export import Form
from thrifty.observe.redact import Redactor
from thrifty.observe.texts import MAX_TOOLS_CHARS, make_texts
from thrifty.openai.fields import Endpoint
from thrifty.train.examples import encode_row
from thrifty.train.rows import Method, Row, parse_row

REDACTOR = Redactor(b"k" * 32)
ASKED = [{"role": "user", "content": "How is Paris?"}]
# The order of keys is that of the prompt, and what redaction takes out is no part of what was told.
BACKWARDS = {"function": {"parameters": {"type": "object", "properties": {}}, "name": "b"},
             "type": "function"}  # fmt: skip
CUSTOM = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command."}}
CALLED = [
    *ASKED,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "a.txt"},
]  # fmt: skip
HISTORY = [
    *ASKED,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function",
         "function": {"name": "weather", "arguments": '{"city":  "Paris", "n":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "b", "arguments": {"é": 1}}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
    {"role": "tool", "tool_call_id": "c2", "content": "None."},
]  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "no tools": {"messages": ASKED},
    "tools": {"messages": ASKED, "tools": [TOOL, BACKWARDS]},
    "twice": {"messages": ASKED, "tools": [TOOL, TOOL]},
    "not now": {"messages": ASKED, "tools": [TOOL], "tool_choice": "none"},
    "this one": {"messages": ASKED, "tools": [TOOL, BACKWARDS],
                 "tool_choice": {"type": "function", "function": {"name": "b"}}},
    "required": {"messages": ASKED, "tools": [BACKWARDS, TOOL], "tool_choice": "required"},
    "history": {"messages": HISTORY, "tools": [TOOL, BACKWARDS]},
    "custom": {"messages": CALLED, "tools": [CUSTOM, TOOL]},
    "settings": {"messages": ASKED, "chat_template_kwargs": {"enable_thinking": False}},
}  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path}/t.db", migrate=True)
    yield opened
    opened.close()


def log(database: Database, number: int, body: dict[str, Any], answer: str = "Grey.") -> None:
    row = dict.fromkeys(COLUMNS) | {
        "id": number, "at_s": float(number), "endpoint": "/v1/chat/completions", "status": 200,
        "stream": False, "attempts": 1, "e2e_ms": 1.0, "deployment": "echo", "version": "v1",
        "tenant": "red", "end_user": "ann",
    }  # fmt: skip
    said = {"choices": [{"index": 0, "message": {"role": "assistant", "content": answer}}]}
    texts = make_texts(Endpoint.CHAT, body, json.dumps(said).encode(), prepare=REDACTOR.prepare)
    assert texts is not None
    entry = Entry(tuple(row[name] for name in COLUMNS), tuple(texts))
    assert RequestLog(database).write([entry]) == []
    say(database, number, UP)


@pytest.mark.parametrize("template", ["HERMES", "CHATML", "NINE"])
def test_the_prompt_that_is_learned_is_the_one_that_was_served(
    database: Database,
    template: str,
) -> None:
    tokenizer = find_tokenizer(TEMPLATES[template])
    served = {}
    for number, body in enumerate(BODIES.values(), 1):
        log(database, number, body)
        served[number] = build_prompt(body, tokenizer, parse_tools(body)).ids
    for form, method in ((Form.SFT, Method.SFT), (Form.KTO, Method.KTO)):
        rows, skipped = export(database, form)
        assert not skipped
        assert len(rows) == len(BODIES)
        for row in rows:
            number = row["provenance"]["response"]
            for record in (row, make_row(row, method.value, "auto", Fields()) | {
                "provenance": row["provenance"]}):  # fmt: skip
                parsed = parse_row(json.dumps(record).encode(), 1, method)
                assert isinstance(parsed, Row), parsed
                found = encode_row(parsed, method, tokenizer, 4096)
                assert not isinstance(found, str), found
                text = found[0].texts[0]
                prompt = text.tokens[: text.answer_begin]
                assert prompt == served[number], (form, list(BODIES)[number - 1])


def test_answers_to_other_tools_are_no_pair(database: Database) -> None:
    log(database, 1, BODIES["tools"], "one")
    log(database, 2, BODIES["no tools"], "two")
    say(database, 2, DOWN)
    rows, skipped = export(database, Form.DPO)
    assert (rows, skipped) == ([], {"unpaired": 2})


def test_a_prompt_that_cannot_be_made_again_is_no_row(database: Database) -> None:
    long = {**TOOL, "function": {**TOOL["function"], "description": "x" * MAX_TOOLS_CHARS}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    mail = {**TOOL, "function": {**TOOL["function"], "description": "Asks ann@example.com"}}
    log(database, 1, {"messages": ASKED, "tools": [long]})
    log(database, 2, {"messages": [{"role": "user", "content": [image]}]})
    log(database, 3, {"messages": [*ASKED, {"role": "assistant", "content": "G"}],
                      "continue_final_message": True})  # fmt: skip
    log(database, 4, {"messages": ASKED, "truncate_prompt_tokens": 5})
    log(database, 5, {"messages": [{"role": "user", "content": "x" * 1_000_001}]})
    log(database, 6, {"messages": ASKED, "tools": [mail]})
    rows, skipped = export(database, Form.SFT)
    assert skipped == {"unlike": 5}
    (row,) = rows
    assert "<EMAIL_" in row["tools"][0]["function"]["description"]
