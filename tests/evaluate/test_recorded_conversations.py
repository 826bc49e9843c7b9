"""The request log as a domain: what clients asked, and nothing else."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.db.databases import KINDS, empty_tables, open_kind
from tests.db.test_database import row
from thrifty.db import Database
from thrifty.db.request_log import Entry, RequestLog
from thrifty.errors import EvaluationError
from thrifty.evaluate import recorded_conversations
from thrifty.evaluate.recorded_conversations import write_recorded
from thrifty.observe.texts import make_texts
from thrifty.openai.fields import Endpoint

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(opened: Database) -> Database:
    empty_tables(opened)
    return opened


def entry(*messages: Any, answer: Any = "Hello.", at_s: float = 1.0, **changes: Any) -> Entry:
    """A recorded response as the gateway writes it."""
    message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
    body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
    asked = [one if isinstance(one, dict) else {"role": "user", "content": one} for one in messages]
    endpoint = changes.pop("endpoint", Endpoint.CHAT)
    request = {"messages": asked, "prompt": messages[0]}
    texts = make_texts(endpoint, request, body)
    values = {"deployment": "assistant", "origin": "client", "tenant": "a", "at_s": at_s, **changes}
    return Entry(row(endpoint=endpoint.value, **values), texts)


def read(path: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def test_what_clients_asked_becomes_conversations(database: Database, tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    RequestLog(database).write([
        entry(system, "Hi."), entry("Weather?", answer=call), entry("Batch.", origin="batch"),
        entry("Before origins.", origin=None),
    ])  # fmt: skip
    path = write_recorded(database, "assistant", tmp_path / "recorded")
    found = {messages[-2]["content"]: messages for messages in read(path)}
    assert set(found) == {"Hi.", "Weather?", "Batch.", "Before origins."}
    assert found["Hi."][0] == system
    assert found["Hi."][-1] == {"role": "assistant", "content": "Hello."}
    assert found["Weather?"][-1]["tool_calls"][0]["function"]["name"] == "weather"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    assert write_recorded(database, "assistant", tmp_path / "recorded").read_bytes() == before


def test_what_clients_did_not_ask_or_get_is_left_out(database: Database, tmp_path: Path) -> None:
    RequestLog(database).write([
        entry("Kept."), entry("Shadow.", origin="shadow", shadow_of=5),
        entry("Probe.", origin="measurement"), entry("Refused.", status=400, answer=""),
        entry("Broken off.", error="client_closed"), entry("Other.", deployment="other"),
        entry("Text.", endpoint=Endpoint.COMPLETIONS), entry("Nothing.", answer=""),
        entry("Not recorded.")._replace(text=None),
    ])  # fmt: skip
    path = write_recorded(database, "assistant", tmp_path)
    assert [messages[0]["content"] for messages in read(path)] == ["Kept."]


def test_a_conversation_counts_once_as_it_was_last(database: Database, tmp_path: Path) -> None:
    first = entry("Hi.", at_s=1.0, conversation_id="c")
    answer = {"role": "assistant", "content": "Hello."}
    last = entry("Hi.", answer, "Bye.", answer="Bye!", at_s=2.0, conversation_id="c")
    RequestLog(database).write([last, first, entry("Again."), entry("Again.")])
    path = write_recorded(database, "assistant", tmp_path)
    assert sorted(map(len, read(path))) == [2, 4]


def test_the_newest_are_used(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_conversations, "MOST_CONVERSATIONS", 3)
    RequestLog(database).write([entry(f"Question {n}", at_s=float(n)) for n in range(10)])
    path = write_recorded(database, "assistant", tmp_path)
    assert {messages[0]["content"] for messages in read(path)} == {
        "Question 7", "Question 8", "Question 9",
    }  # fmt: skip


@pytest.mark.parametrize("deployment", ["assistant", "nobody", "../../etc/x"])
def test_a_log_without_texts_is_told(database: Database, tmp_path: Path, deployment: str) -> None:
    RequestLog(database).write([entry("Not recorded.")._replace(text=None)])
    with pytest.raises(
        EvaluationError, match=r"no conversations .* set 'record: \{prompts: true\}'"
    ):
        write_recorded(database, deployment, tmp_path / "recorded")
    assert not (tmp_path / "recorded").exists()


def test_texts_in_another_form_are_passed_over(database: Database, tmp_path: Path) -> None:
    broken = entry("Broken.")._replace(text=("{nonsense", "Hello."))
    RequestLog(database).write([broken, entry("Whole.")])
    path = write_recorded(database, "assistant", tmp_path)
    assert [messages[0]["content"] for messages in read(path)] == ["Whole."]
