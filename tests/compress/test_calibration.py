"""How much of a text is learned from, and that it holds nothing to judge by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.compress.calibration import count_tokens, read_calibration
from thrifty.compress.overlap import check_no_overlap
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import CompressionError


@pytest.mark.parametrize(("learned", "used"), [(2048, 2048), (8192, 8192), (100, 512)])
def test_as_many_tokens_are_learned_from_as_were_asked_for(
    tmp_path: Path, learned: int, used: int
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a word and another one\n" * 2000)
    judged, windows = read_calibration(path, make_tokenizer(), 512, judged=8192, learned=learned)
    assert count_tokens(windows) == used
    assert judged


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def ask(question: str, answer: str = "Yes.", system: str = "Be brief.") -> dict[str, Any]:
    said = (("system", system), ("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in said]}


def test_what_is_judged_by_is_refused_with_its_rows(tmp_path: Path) -> None:
    phrase = "one two three four five six seven eight nine ten eleven twelve thirteen"
    judged = write(tmp_path / "judged.jsonl", ask("Who sang it?"), ask(f"Say {phrase}."))
    apart = write(tmp_path / "apart.jsonl", ask("Who wrote that?"), {"text": phrase[4:]})
    check_no_overlap(apart, judged)
    for learned, rows in (
        (ask("who sang it"), ""),  # too short to mean anything
        (ask("who was it that sang it"), ""),
        ({"text": f"Then: {phrase.upper()}!"}, "line 3 has what line 2 of the latter has"),
        (ask("Hello?", f"Well, {phrase}"), "line 3 has what line 2 of the latter has"),
    ):
        path = write(tmp_path / "learned.jsonl", ask("A?"), ask("B?"), learned)
        if not rows:
            check_no_overlap(path, apart, judged)
            continue
        with pytest.raises(CompressionError, match=rows):
            check_no_overlap(path, apart, judged)


def test_a_short_question_is_found_as_a_whole(tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", ask("Who sang the song about rain?"))
    learned = write(tmp_path / "learned.jsonl", ask("who sang the song about rain"))
    with pytest.raises(
        CompressionError, match=r"learned\.jsonl, line 1 as .*judged\.jsonl, line 1"
    ):
        check_no_overlap(learned, judged)
    other = write(tmp_path / "other.jsonl", ask("Who sang the song that is about May?"))
    check_no_overlap(other, judged)


def test_the_same_system_message_is_no_overlap(tmp_path: Path) -> None:
    system = "You are an assistant that answers every question as briefly as it can be answered."
    judged = write(tmp_path / "judged.jsonl", ask("A?", system=system))
    check_no_overlap(write(tmp_path / "learned.jsonl", ask("B?", system=system)), judged)
