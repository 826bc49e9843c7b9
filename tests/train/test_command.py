"""`thrifty train`: feedback becomes rows without a file in between, and options that say nothing are
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.feedback.test_export import DOWN, UP, respond, say
from thrifty.cli.app import app
from thrifty.cli.train import _find_rows
from thrifty.db import Database, open_database
from thrifty.db.feedback import Item
from thrifty.errors import TrainingError
from thrifty.home import HOME_VARIABLE, Home
from thrifty.train.rows import Method, Row, SetAside, read_rows


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    database = open_database(home.database_url, migrate=True)
    yield database
    database.close()


def read(home: Home, method: Method) -> tuple[list[Row], SetAside]:
    aside = SetAside()
    found = _find_rows("log:echo", method, home)
    assert found.name == "log:echo"
    assert found.refresh is not None
    found.refresh()
    return list(read_rows(found.learned, method, aside)), aside


def test_feedback_is_learned_straight_from_the_log(home: Home, database: Database) -> None:
    respond(database, 1, "Who?", "I.")
    respond(database, 2, "Why?", "No.")
    respond(database, 3, "When?", "Then.", deployment="other")
    say(database, 1, UP)
    say(database, 2, DOWN, Item("correction", text="Because."))
    say(database, 3, UP)
    supervised, aside = read(home, Method.SFT)
    assert not aside.counts
    said = {row.messages[0]["content"]: row.messages[1]["content"] for row in supervised}
    assert said == {"Who?": "I.", "Why?": "Because."}
    assert {frozenset({1})} == {row.learned for row in supervised}
    (pair,), _ = read(home, Method.DPO)
    assert [one["content"] for one in pair.answers] == ["Because.", "No."]
    judged, _ = read(home, Method.KTO)
    assert sorted((row.answers[0]["content"], row.label) for row in judged) == [
        ("Because.", True), ("I.", True), ("No.", False),
    ]  # fmt: skip
    (path,) = _find_rows("log:echo", Method.KTO, home).learned
    assert path.stat().st_mode & 0o077 == 0, "texts of users are for their owner alone"
    with pytest.raises(TrainingError, match="feedback is about answers, and --method contrastive"):
        _find_rows("log:echo", Method.CONTRASTIVE, home)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "ppo"], "'ppo' is no method; take sft, dpo, kto, contrastive or distill"),
        (["--method", "sft", "--beta", "0.2"], "--beta has no meaning with --method sft"),
        (["--method", "kto", "--teacher", "x"], "--teacher has no meaning with --method kto"),
        (["--method", "sft", "--resume", "--restart"], "leave one of them out"),
        (["--method", "distill"], "needs --teacher"),
        (["--method", "distill", "--teacher", "x", "--minutes", "1", "--epochs", "2"],
         "--epochs has no meaning with --method distill"),
        (["--method", "sft", "--epochs", "0"], "--epochs must be above 0"),
        (["--method", "sft", "--batch", "0"], "--batch must be at least 1"),
        (["--method", "sft", "--window", "3"], "--window must be at least 32"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    rows = home.root / "rows.jsonl"
    rows.write_text("")
    result = CliRunner().invoke(app, ["train", "m", "--data", str(rows), "--out", "x", *options])
    assert isinstance(result.exception, TrainingError)
    assert said in str(result.exception)


def test_distill_has_half_an_hour_unless_asked_otherwise(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv(HOME_VARIABLE, str(home.root))
    given: list[float | None] = []
    monkeypatch.setattr(
        "thrifty.cli.train.run_distill",
        lambda *_, training, **_others: given.append(training.minutes),
    )
    rows = home.root / "rows.jsonl"
    rows.write_text("")
    command = [
        "train",
        "m",
        "--data",
        str(rows),
        "--out",
        "x",
        "--method",
        "distill",
        "--teacher",
        "t",
    ]
    for options in ([], ["--minutes", "5"]):
        assert CliRunner().invoke(app, [*command, *options]).exit_code == 0
    assert given == [30.0, 5.0]


def test_a_missing_extra_is_told_with_its_name(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.train import process
    from thrifty.train.request import TrainingRequest
    from thrifty.train.run import train_model

    monkeypatch.setattr(process, "find_spec", lambda name: None)
    request = TrainingRequest("m", home.root / "rows.jsonl", Method.SFT, "x")
    with pytest.raises(TrainingError, match=r"pip install 'thrifty\[compress\]'"):
        train_model(None, home, request)  # type: ignore[arg-type]
