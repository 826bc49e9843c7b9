"""Training rows from feedback: who decides, what gives no row, and that pseudonyms are no target."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.db.test_feedback import log_response
from thrifty.cli.app import app
from thrifty.db import Database, open_database
from thrifty.db.feedback import Feedback, Item, Judgement, save_feedback
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.subjects import open_subjects
from thrifty.feedback.export import Form, Skipped, decide, export_rows
from thrifty.home import HOME_VARIABLE, Home

UP, DOWN = Item("thumbs", 1.0), Item("thumbs", 0.0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    database = open_database(home.database_url, migrate=True)
    yield database
    database.close()


def respond(
    database: Database, number: int, question: str, answer: str, *, before: Sequence[Any] = (),
    **values: Any,
) -> None:  # fmt: skip
    row = dict.fromkeys(COLUMNS) | {
        "id": number, "at_s": float(number), "endpoint": "/v1/chat/completions", "status": 200,
        "stream": False, "attempts": 1, "e2e_ms": 1.0, "deployment": "echo", "version": "v1",
        "tenant": "red", "end_user": "ann", **values,
    }  # fmt: skip
    prompt = json.dumps([*before, {"role": "user", "content": question}])
    entry = Entry(tuple(row[name] for name in COLUMNS), (prompt, answer))
    assert RequestLog(database).write([entry]) == []


def say(database: Database, number: int, *items: Item, user: str | None = None) -> None:
    save_feedback(database, Feedback("red", items, response=number, user=user))


def export(database: Database, form: Form) -> tuple[list[dict[str, Any]], dict[str, int]]:
    skipped = Skipped()
    rows = list(export_rows(database, form, open_subjects(database), skipped))
    return rows, dict(skipped.counts)


def test_a_response_is_decided_by_persons_not_by_clicks() -> None:
    def judge(*votes: tuple[str, str, float]) -> bool | None:
        return decide([Judgement(1, kind, user, value, None, 0.0) for user, kind, value in votes])

    assert judge(("a", "thumbs", 1.0)) is True
    assert judge(("a", "thumbs", 1.0), ("b", "thumbs", 0.0)) is None
    assert judge(("a", "thumbs", 0.0), ("a", "rating", 5.0)) is False
    assert judge(("a", "rating", 5.0), ("b", "rating", 4.0), ("c", "thumbs", 0.0)) is True
    assert judge(("a", "rating", 3.0)) is None
    assert judge(("a", "event:copied", 1.0)) is None


def test_each_form_has_its_rows_and_their_provenance(database: Database) -> None:
    respond(database, 1, "Capital?", "Paris")
    respond(database, 2, "Capital?", "Rome")
    respond(database, 3, "Sum?", "5")
    respond(database, 4, "City?", "Oslo")
    say(database, 1, UP)
    say(database, 2, DOWN, user="bob")
    say(database, 3, Item("correction", text="4"))
    say(database, 4, DOWN)
    rows, skipped = export(database, Form.SFT)
    targets = {row["messages"][-1]["content"]: row["provenance"] for row in rows}
    assert targets.keys() == {"Paris", "4"}
    assert skipped == {"disliked": 2}
    assert targets["4"]["source"] == "correction"
    assert (targets["Paris"]["response"], targets["Paris"]["version"]) == (1, "v1")
    assert len(targets["Paris"]["subjects"]) == 1
    assert "ann" not in json.dumps(rows)

    rows, skipped = export(database, Form.DPO)
    pairs = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
    assert pairs == {("Paris", "Rome"), ("4", "5")}
    assert skipped == {"unpaired": 1}
    two = next(row["provenance"] for row in rows if row["chosen"][0]["content"] == "Paris")
    assert [one["response"] for one in two] == [1, 2]
    assert len({one["subjects"][-1] for one in two} | set(two[1]["subjects"])) == 2

    rows, skipped = export(database, Form.KTO)
    labels = {(row["completion"][0]["content"], row["label"]) for row in rows}
    assert labels == {("Paris", True), ("Rome", False), ("4", True), ("5", False), ("Oslo", False)}
    assert skipped == {}
    assert export(database, Form.KTO)[0] == rows, "the same order each time"


def test_what_gives_no_row_is_counted_by_its_reason(database: Database) -> None:
    log_response(database, 1)
    say(database, 1, UP)
    say(database, 99, UP)
    respond(database, 2, "a", "b", status=500, error="engine_error")
    say(database, 2, UP)
    respond(database, 3, "a", "b", endpoint="/v1/completions")
    say(database, 3, UP)
    respond(database, 4, "a", "b")
    say(database, 4, UP, user="x")
    say(database, 4, DOWN, user="y")
    respond(database, 5, "a", "")
    say(database, 5, UP)
    respond(database, 6, "a", "Write to <EMAIL_kqzmwxtb>")
    say(database, 6, UP)
    respond(database, 7, "a", "b")
    say(database, 7, Item("event:copied", 1.0))
    respond(database, 8, "I am <EMAIL_kqzmwxtb>", "Hello")
    say(database, 8, UP)
    reasons = {
        "no_text": 1, "not_logged": 1, "failed": 1, "not_chat": 1, "undecided": 1,
        "not_one_answer": 1, "pseudonym": 1, "no_judgement": 1,
    }  # fmt: skip
    for form in (Form.SFT, Form.KTO):
        rows, skipped = export(database, form)
        assert len(rows) == 1, "a pseudonym in the prompt does no harm"
        assert skipped == reasons


def test_no_target_holds_a_pseudonym(database: Database) -> None:
    secret = "Call <PHONE_abcdefgh>"
    respond(database, 1, "a", secret)
    say(database, 1, Item("correction", text="Call him"))
    respond(database, 2, "a", "fine")
    say(database, 2, Item("correction", text=secret), UP)
    respond(database, 3, "a", secret)
    say(database, 3, Item("correction", text=secret))
    for form in Form:
        rows, _ = export(database, form)
        targets = [row.get("messages", [None])[-1] for row in rows]
        targets += [row.get(name) for row in rows for name in ("chosen", "rejected", "completion")]
        assert "<PHONE_" not in json.dumps(targets), form
    assert len(export(database, Form.SFT)[0]) == 2


def run(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["feedback", *arguments], env={HOME_VARIABLE: str(home.root)})


def test_the_command_writes_rows_to_stdout_or_a_file(home: Home, database: Database) -> None:
    respond(database, 1, "Capital?", "Paris ✓")
    say(database, 1, UP, Item("comment", text="good"))
    say(database, 99, UP)
    result = run(home, "export", "--as", "kto")
    assert result.exit_code == 0, result.output
    (row,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert (row["completion"][0]["content"], row["label"]) == ("Paris ✓", True)
    assert "1 rows" in result.stderr
    assert "no row: 1 response whose response is not in the request log" in result.stderr
    out = home.root / "rows.jsonl"
    result = run(home, "export", "--as", "sft", "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(out.read_text())["messages"][-1]["content"] == "Paris ✓"
    assert out.stat().st_mode & 0o077 == 0
    assert "sft, dpo, kto" in str(run(home, "export", "--as", "ppo").exception)
    listed = json.loads(run(home, "list", "--json").stdout)
    assert {one["kind"] for one in listed["data"]} == {"thumbs", "comment"}
    assert "good" in run(home, "list", "--kind", "comment").stdout
