"""Noise on rows: repeatable, other in each epoch, only on what users say, and never in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_built import publish_rows
from thrifty.data import open_set
from thrifty.data.noise import KINDS, Epoch, Noise, add_noise
from thrifty.errors import DataError

QUESTION = (
    "Could you explain, please, what is going to happen with item 4711 at https://a.example/Path?"
)


def row(number: int = 0) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": "Answer Politely."},
            {"role": "user", "content": f"{QUESTION} Use `Some Code` here."},
            {"role": "assistant", "content": "It will be Delivered."},
        ],
        "provenance": {"source": "made", "line": number},
    }


ALWAYS = Noise(rows=1, words=0.5)


def test_a_row_of_an_epoch_is_always_the_same_and_epochs_differ() -> None:
    shown = [add_noise(row(), ALWAYS, epoch, 7) for epoch in range(6)]
    assert shown == [add_noise(row(), ALWAYS, epoch, 7) for epoch in range(6)]
    assert len({one["messages"][1]["content"] for one in shown}) >= 4
    other = [add_noise(row(), Noise(rows=1, words=0.5, seed=1), epoch, 7) for epoch in range(6)]
    assert shown != other
    assert shown[0]["provenance"]["noise"] == {"seed": 0, "epoch": 0, "row": 7}


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_users_say_changes_and_neither_code_nor_numbers(kind: str) -> None:
    noise = Noise(rows=1, words=0.5, kinds=(kind,))
    changed = 0
    for number in range(20):
        before, after = row(), add_noise(row(), noise, 0, number)
        assert after["messages"][::2] == before["messages"][::2]
        said = after["messages"][1]["content"]
        for kept in ("4711", "https://a.example/Path?", "`Some Code`"):
            assert kept in said
        changed += said != before["messages"][1]["content"]
        assert 0.7 < len(said) / len(before["messages"][1]["content"]) < 1.3
    assert changed >= 15


def test_pairs_keep_their_answers_and_text_rows_all() -> None:
    pair = {
        "prompt": [{"role": "user", "content": QUESTION}],
        "chosen": [{"role": "assistant", "content": "Yes, Indeed."}],
    }
    after = add_noise(pair, ALWAYS, 0, 1)
    assert after["prompt"] != pair["prompt"]
    assert after["chosen"] == pair["chosen"]
    assert add_noise({"text": QUESTION}, ALWAYS, 0, 1) == {"text": QUESTION}
    assert add_noise(row(), Noise(rows=0), 0, 1) == row()
    quiet = sum(add_noise(row(), Noise(), 0, number) == row() for number in range(200))
    assert 70 < quiet < 150


def test_an_epoch_can_go_on_where_it_was(tmp_path: Path) -> None:
    publish_rows(tmp_path, "rows", {"train": [row(number) for number in range(30)]})
    built = open_set(tmp_path, "rows")
    first, second = (list(Epoch(built, epoch, ALWAYS).read()) for epoch in (0, 1))
    assert list(Epoch(built, 0, ALWAYS).read(20)) == first[20:]
    lines = [[one["provenance"]["line"] for one in rows] for rows in (first, second)]
    assert sorted(lines[0]) == sorted(lines[1]) == list(range(30))
    assert lines[0] != lines[1]
    plain = Epoch(built, 0, shuffled=False).read()
    assert [one["provenance"]["line"] for one in plain] == list(range(30))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(DataError, match="shares from 0 to 1, not 2"):
        Noise(rows=2)
    with pytest.raises(DataError, match="kinds of noise are typing, case, spacing, speech"):
        Noise(kinds=("smell",))
