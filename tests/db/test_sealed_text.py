"""Texts encrypted in the database: every column, rotation, sealing anew, and keys that are lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Text, insert, select, type_coerce

from tests.db.databases import KINDS, empty_tables, open_kind
from tests.db.test_database import row
from thrifty.db import Database
from thrifty.db.desired import SERVICE, DesiredChange, change_desired
from thrifty.db.desired_state import DesiredService
from thrifty.db.feedback import Feedback, FeedbackFilter, Item, list_feedback, save_feedback
from thrifty.db.request_log import Entry, RequestLog, read_conversations
from thrifty.db.request_queries import read_texts
from thrifty.db.sealed_text import MARK, SEALED, KeySource, make_key, read_keys, unreadable
from thrifty.db.tables import request_texts
from thrifty.db.text_keys import PLAIN, count_texts, list_columns, list_sources, reseal
from thrifty.errors import TextKeyError
from thrifty.observe.texts import describe_texts

PROMPT = '[{"role":"user","content":"Where does Zoë live?"}]'


@pytest.fixture(scope="module", params=KINDS)
def shared(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(shared: Database) -> Database:
    empty_tables(shared)
    shared.text_keys.refresh(within_s=0.0)
    return shared


def use(database: Database, source: str) -> None:
    """Apply a spec with these keys."""

    def decide(_: Any) -> list[DesiredChange]:
        return [DesiredChange(SERVICE, DesiredService(text_keys=source))]

    change_desired(database, decide, kind="apply", who="ann", why="")
    database.text_keys.refresh(within_s=0.0)


def add_key(path: Path) -> str:
    with path.open("a") as file:
        file.write(f"{make_key()}\n")
    return read_keys(KeySource("file", str(path)))[-1].id


def write(database: Database, answer: str = "In Ghent.", prompt: str = PROMPT) -> int:
    asked = row("r", at_s=9.0, deployment="chat", endpoint="/v1/chat/completions")
    entry = Entry(asked, (prompt, answer, '{"finish":["stop"]}'))
    assert RequestLog(database).write([entry]) == []
    return int(entry.row[0])


def read_raw(database: Database) -> list[str]:
    columns = [type_coerce(request_texts.c[name], Text) for name in ("prompt", "answer", "facts")]
    with database.begin() as connection:
        return [value for found in connection.execute(select(*columns)) for value in found]


def test_texts_are_sealed_in_the_database_and_read_as_they_were(
    database: Database, tmp_path: Path
) -> None:
    ident = add_key(tmp_path / "keys")
    use(database, f"file:{tmp_path}/keys")
    number = write(database)
    texts = read_texts(database, number)
    assert texts is not None
    assert (texts.prompt, texts.answer) == (PROMPT, "In Ghent.")
    raw = read_raw(database)
    assert all(value.startswith(f"{SEALED}{ident}:") for value in raw)
    assert len(set(raw)) == 3
    given = Feedback("red", (Item("comment", text="He moved to Bruges"),), response=number)
    save_feedback(database, given, 10.0)
    assert list_feedback(database, FeedbackFilter())[0][0].text == "He moved to Bruges"
    if database.file is not None:
        plain = sqlite3.connect(database.file)
        stored = plain.execute("SELECT text FROM feedback").fetchone()[0]
        plain.close()
        assert stored.startswith(SEALED)
    # What replaced a value is sealed, too, and the same value is no change.
    again = Feedback("red", (Item("comment", text="He moved to Bruges"),), response=number)
    save_feedback(database, again, 11.0)
    assert list_feedback(database, FeedbackFilter())[0][0].changes == 0
    assert count_texts(database) == {ident: 4}


def test_empty_texts_and_texts_that_look_sealed_stay_what_they_are(
    database: Database, tmp_path: Path
) -> None:
    tricky, before = f"{SEALED}01234567:AAAA", unreadable.total()
    plain = [write(database, answer) for answer in (tricky, f"{MARK}0:x", "")]
    add_key(tmp_path / "keys")
    use(database, f"file:{tmp_path}/keys")
    sealed = [write(database, answer) for answer in (tricky, "")]
    answers = [read_texts(database, number).answer for number in [*plain, *sealed]]  # type: ignore[union-attr]
    assert answers == [tricky, f"{MARK}0:x", "", tricky, ""]
    assert unreadable.total() == before


def test_the_newest_key_writes_older_ones_read_and_sealing_anew_frees_them(
    database: Database, tmp_path: Path
) -> None:
    plain = write(database, "said before there were keys")
    path = tmp_path / "keys"
    first = add_key(path)
    use(database, f"file:{path}")
    old = write(database, "said under the first key")
    second = add_key(path)
    database.text_keys.refresh(within_s=0.0)
    new = write(database, "said under the second key")
    counts = count_texts(database)
    assert counts == {PLAIN: 3, first: 3, second: 3}
    seen: list[int] = []
    done = reseal(database, "ann", seen.append)
    assert (done.sealed, done.unreadable) == (6, 0)
    assert count_texts(database) == {second: 9}
    assert reseal(database, "ann").sealed == 0, "what is done is not done again"
    # The first key may go now.
    path.write_text(path.read_text().splitlines()[1])
    for number, said in ((plain, "before"), (old, "the first"), (new, "the second")):
        texts = read_texts(database, number)
        assert texts is not None
        assert said in texts.answer
    if database.file is not None:
        database.engine.dispose()
        assert b"before there were keys" not in database.file.read_bytes()


def test_a_lost_key_is_told_and_counted_and_breaks_nothing(
    database: Database, tmp_path: Path
) -> None:
    lost, kept = tmp_path / "lost", tmp_path / "kept"
    ident = add_key(lost)
    use(database, f"file:{lost}")
    number = write(database)
    add_key(kept)
    use(database, f"file:{kept}")
    assert [str(one) for one, _ in list_sources(database)] == [f"file:{kept}", f"file:{lost}"]
    other = write(database, "In Bruges.")
    lost.unlink()
    database.engine.dispose()
    database.text_keys._known.clear()  # as in a process that starts now
    database.text_keys.refresh(within_s=0.0)
    before = unreadable[ident]
    texts = read_texts(database, number)
    assert texts is not None
    assert not texts.readable
    assert "key that is missing" in describe_texts(texts)["texts_fault"]
    assert unreadable[ident] > before
    assert describe_texts(read_texts(database, other))["answer"][0]["content"] == "In Bruges."
    done = reseal(database, "ann")
    assert (done.sealed, done.unreadable, done.keys) == (0, 3, {ident})
    assert [one.answer for one in read_conversations(database, "chat", 9)] == ["In Bruges."]


def test_no_text_is_written_plain_where_the_key_is_missing(
    database: Database, tmp_path: Path
) -> None:
    use(database, f"file:{tmp_path}/none")
    log = RequestLog(database)
    entry = Entry(row("r"), (PROMPT, "In Ghent."))
    assert log.write([entry]) == []
    assert (log.texts_lost, read_raw(database)) == (1, [])
    assert f"{tmp_path}/none" in log.text_fault
    given = Feedback("red", (Item("comment", text="secret"),), response=5)
    with pytest.raises(TextKeyError, match="cannot be read: No such file"):
        save_feedback(database, given, 10.0)
    assert list_feedback(database, FeedbackFilter())[0] == []
    # Thumbs have no text, and a key that comes is found.
    save_feedback(database, Feedback("red", (Item("thumbs", 1.0),), response=5), 10.0)
    add_key(tmp_path / "none")
    database.text_keys.refresh(within_s=0.0)
    save_feedback(database, given, 10.0)
    assert len(list_feedback(database, FeedbackFilter())[0]) == 2


def test_a_sealed_text_moves_to_no_other_column_and_cannot_be_changed(
    database: Database, tmp_path: Path
) -> None:
    add_key(tmp_path / "keys")
    use(database, f"file:{tmp_path}/keys")
    number = write(database)
    prompt = read_raw(database)[0]
    with database.begin() as connection:
        table = request_texts
        statement = table.update().where(table.c.id == number)
        connection.execute(statement.values({table.c.answer: type_coerce(prompt, Text)}))
    texts = read_texts(database, number)
    assert texts is not None
    assert (texts.prompt, texts.answer) == (PROMPT, "")
    assert reseal(database, "ann").sealed == 0, "what cannot be read is left as it is"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot be read"),
        ("", "holds no key"),
        ("# only a comment\n", "holds no key"),
        ("c2hvcnQ=\n", "no key: a key is 32 random bytes"),
        ("not base64 at all!\n", "no key: a key is 32 random bytes"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused_without_showing_it(
    tmp_path: Path, content: str | None, fault: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TextKeyError, match=fault) as caught:
        read_keys(KeySource("file", str(path)))
    assert "c2hvcnQ" not in str(caught.value)
    assert "base64 at all" not in str(caught.value)


def test_keys_come_from_a_variable_too() -> None:
    one, two = make_key(), make_key()
    found = read_keys(KeySource("env", "KEYS"), {"KEYS": f"{one},{two}"})
    assert len({key.id for key in found}) == 2
    with pytest.raises(TextKeyError, match="KEYS, which holds the keys of texts, is not set"):
        read_keys(KeySource("env", "KEYS"), {})


def test_every_column_with_recorded_texts_can_be_sealed() -> None:
    found = {str(column) for _, columns in list_columns() for column in columns}
    assert found == {
        "request_texts.prompt", "request_texts.answer", "request_texts.facts", "feedback.text",
        "feedback_history.text",
    }  # fmt: skip
    for _, columns in list_columns():
        assert all(column.type.place == str(column) for column in columns)  # type: ignore[attr-defined]


def test_rows_that_are_written_together_are_sealed_one_by_one(
    database: Database, tmp_path: Path
) -> None:
    add_key(tmp_path / "keys")
    use(database, f"file:{tmp_path}/keys")
    rows = [
        {"id": number, "at_s": 1.0, "prompt": PROMPT, "answer": "yes", "facts": None}
        for number in range(1, 6)
    ]
    with database.begin() as connection:
        connection.execute(insert(request_texts), rows)
    answers = read_raw(database)[1::3]
    assert len(set(answers)) == 5
