"""The process that finds names: what it finds with the extra, and what becomes of texts without it."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.parts import running_echo, running_gateway, until
from thrifty.errors import RedactionError
from thrifty.observe.names.finder import MAX_CHARS, MODEL, NameFinder
from thrifty.observe.redact import Found, Redactor

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "I am Xochitl Quux, hello"}]}
names = pytest.mark.names
needs_extra = pytest.mark.skipif(
    find_spec("presidio_analyzer") is None, reason="NAMES ARE NOT CHECKED: run make test-names"
)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may take long to load beside others' work."""
    monkeypatch.setattr("thrifty.observe.names.finder.WAIT_S", 150.0)


@pytest.fixture(scope="module")
def finder() -> Iterator[NameFinder]:
    opened = NameFinder()
    yield opened
    opened.close()


def test_a_model_that_is_not_there_is_said_and_nothing_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thrifty.observe.names.finder.RESTART_S", 3600.0)
    opened = NameFinder("xx_no_such_model")
    try:
        with pytest.raises(
            RedactionError, match=r"names cannot be found by xx_no_such_model: .*Error"
        ):
            opened.find(["Ann"])
        with pytest.raises(RedactionError, match="started anew soon"):
            opened.find(["Ann"])
        monkeypatch.setattr("thrifty.observe.names.finder.RESTART_S", 0.0)
        monkeypatch.setattr("thrifty.observe.names.finder.WAIT_S", 0.0)
        with pytest.raises(RedactionError, match="still being loaded"):
            opened.find(["Ann"])
        assert opened.find(["", "1 2 3"]) == Found(), "there is nothing to look for"
        with pytest.raises(RedactionError, match="at most 200,000"):
            opened.find(["a" * MAX_CHARS, "ab"])
    finally:
        opened.close()


async def test_where_names_cannot_be_found_rows_are_kept_without_texts(tmp_path: Path) -> None:
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [url], prompts=True, names="xx_no_such_model") as gateway,
    ):
        answer = await gateway.ask({**CHAT, "metadata": {"who": "Xochitl"}})
        assert answer.status == 200
        about = answer.json()["id"]
        said = await gateway.ask({"response_id": about, "comment": "by Xochitl"}, "/v1/feedback")
        assert (said.status, said.error["code"]) == (503, "redaction_away")
        assert (
            await gateway.ask({"response_id": about, "thumbs": "up"}, "/v1/feedback")
        ).status == 201

        async def is_counted() -> bool:
            text = (await gateway.ask(b"", "/metrics", method="GET")).body.decode()
            return "thrifty_log_rows_written_total 1.0" in text and (
                "thrifty_log_texts_lost_total 1.0" in text
            )

        await until(is_counted)
    for file in tmp_path.glob("thrifty.db*"):
        assert b"Xochitl" not in file.read_bytes()


@names
@needs_extra
def test_names_and_addresses_are_replaced_throughout_what_belongs_together(
    finder: NameFinder,
) -> None:
    redactor = Redactor(b"k" * 32, finder.find)
    texts = [
        "My name is Ann Garcia. I live at 12 Elm Road, Springfield, IL 62701.",
        "Garcia is registered at 12 Elm Road, Springfield, IL 62701; ann.garcia@example.com",
        "Will it work, Ann? What is the capital of France?",
    ]
    redact = redactor.prepare(texts, "acme")
    first, second, third = map(redact, texts)
    for text in (first, second, third):
        assert not {"Ann", "Garcia", "Elm"} & set(text.replace("<", " ").split())
    assert first.count("<NAME_") == 2
    assert first.count("<ADDRESS_") == 1
    family = first.split()[4].rstrip(".")
    assert second.startswith(f"{family} is registered at {first.split()[-1].rstrip('.')}; <EMAIL_")
    assert third.startswith("Will it work, <NAME_")
    assert third.endswith("What is the capital of France?")
    again = redactor.redact(texts[0], "acme")
    assert again == first, "the same wherever a tenant says it"
    assert redactor.redact(texts[0], "other") != first


@names
@needs_extra
def test_a_process_that_is_killed_is_started_anew(
    finder: NameFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finder.find(["I am Ann Lee"]).names
    assert finder._process is not None
    os.kill(finder._process.pid, signal.SIGKILL)
    with pytest.raises(RedactionError, match="started anew"):
        finder.find(["I am Ann Lee"])
    monkeypatch.setattr("thrifty.observe.names.finder.RESTART_S", 0.0)
    assert finder.find(["I am Ann Lee"]).names


@names
@needs_extra
async def test_no_name_reaches_the_database(tmp_path: Path) -> None:
    async with (
        running_echo() as url,
        running_gateway(tmp_path, [url], prompts=True, names=MODEL) as gateway,
    ):
        body = {**CHAT, "metadata": {"who": "sent by Angela Merkel"}}
        about = (await gateway.ask(body)).json()["id"]
        given = {"response_id": about, "comment": "My name is Bartholomew Quux"}
        assert (await gateway.ask(given, "/v1/feedback")).status == 201
        file = tmp_path / "thrifty.db"

        def read() -> str | None:
            with sqlite3.connect(file) as connection:
                row = connection.execute("SELECT prompt, answer FROM request_texts").fetchone()
            return row and f"{row}"

        written = await until(read, 60)
        assert written is not None
        assert written.count("<NAME_") == 4, "two words each in the prompt and in its echo"
    for one in tmp_path.glob("thrifty.db*"):
        data = one.read_bytes()
        assert not [name for name in (b"Xochitl", b"Quux", b"Merkel") if name in data]
