"""What is learned from: sources with weights, rendered and read as windows; never what judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prompt import find_tokenizer
from tests.evaluate.bigram import write_text
from tests.text import templates
from thrifty.artifacts import Store
from thrifty.compress.mix import (
    Mix,
    Source,
    as_mix,
    describe_missing_text,
    read_mix,
    read_prompt,
    read_tokens,
)
from thrifty.compress.overlap import check_apart, check_no_overlap, find_repeated_prompts
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import CompressionError, SourceError
from thrifty.evaluate.answers import DEFAULT_SETS
from thrifty.evaluate.questions import Question
from thrifty.evaluate.windows import read_windows
from thrifty.home import Home
from thrifty.spec.compress import parse_source


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def talk(*said: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(said)
    return {"messages": [{"role": r, "content": s} for r, s in zip(roles, said, strict=False)]}


def make_mix(*paths: tuple[Path, float]) -> Mix:
    return Mix(tuple(Source(path.stem, path, path.stem, weight) for path, weight in paths))


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("passages", ("passages", 1.0)),
        ("passages=0.3", ("passages", 0.3)),
        ("a=b.jsonl", ("a=b.jsonl", 1.0)),
        ("a=b.jsonl=2", ("a=b.jsonl", 2.0)),
        ("=2", ("=2", 1.0)),
    ],
)
def test_a_source_is_named_with_its_weight(named: str, expected: tuple[str, float]) -> None:
    assert parse_source(named) == expected


def test_sources_that_cannot_be_are_refused(tmp_path: Path) -> None:
    assert "weight" in str(describe_missing_text("passages=0"))
    assert "weight" in str(describe_missing_text("passages=inf"))
    assert "questions, not text" in str(describe_missing_text("mmlu"))
    assert "neither a file nor a data set" in str(describe_missing_text("nowhere.txt=2"))
    text = write_text(tmp_path / "a.txt", 100)
    with pytest.raises(CompressionError, match="each once"):
        make_mix((text, 1), (text, 1))


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (talk("a", "b"), "conversations"), ({"text": "a", "question": "b"}, "text"),
        ({"prompt": "a"}, "prompts"), ({"instruction": "a"}, "prompts"),
        ({"question": "a", "answer": "b"}, "prompts"), ({"content": "a"}, "text"),
    ],
)  # fmt: skip
def test_the_first_record_says_what_a_file_holds(
    tmp_path: Path, record: dict[str, Any], kind: str
) -> None:
    assert as_mix(write(tmp_path / "a.jsonl", record)).sources[0].kind == kind


def test_windows_come_by_weight_and_a_source_that_ends_leaves_its_share(tmp_path: Path) -> None:
    one, two = (write_text(tmp_path / f"{n}.txt", 20_000, seed=n) for n in (1, 2))
    short = write_text(tmp_path / "3.txt", 700, seed=3)
    tokenizer = make_tokenizer()
    mix = make_mix((one, 3), (two, 1))
    windows = list(read_mix(mix, tokenizer, 100, 8000))
    count = {name: sum(n == name for n, _ in windows) for name in ("1", "2")}
    assert count == {"1": 60, "2": 20}
    again = list(read_mix(mix, tokenizer, 100, 8000))
    assert [(n, w.tokens.tolist()) for n, w in windows] == [
        (n, w.tokens.tolist()) for n, w in again
    ]
    longer = list(read_mix(mix, tokenizer, 100, 12_000))
    assert [n for n, _ in longer][:80] == [n for n, _ in windows], "a longer one begins alike"
    rest = list(read_mix(make_mix((short, 1), (two, 1)), tokenizer, 100, 4000))
    assert sum(len(w.tokens) for _, w in rest) == 4000
    assert sum(n == "3" for n, _ in rest) <= 8


def test_one_text_alone_is_read_as_before(tmp_path: Path) -> None:
    text, tokenizer = write_text(tmp_path / "1.txt", 5000, seed=1), make_tokenizer()
    expected = [w.tolist() for w in read_windows(text, tokenizer, 128, 3000)]
    assert [w.tolist() for w in read_tokens(text, tokenizer, 128, 3000)] == expected


def test_conversations_are_rendered_and_only_answers_count(tmp_path: Path) -> None:
    tokenizer = find_tokenizer(templates.CHATML)
    path = write(tmp_path / "a.jsonl", talk("How are you?", "Fine, and you?"))
    ((name, window),) = read_mix(path, tokenizer, 512, 10_000)
    assert name == "a"
    said = tokenizer.decode(window.tokens[1:][window.counted].tolist(), skip_special_tokens=False)
    assert said.startswith("Fine, and you?")
    assert "How are" not in said
    prompts = write(tmp_path / "b.jsonl", {"question": "How are you?"})
    ((_, asked),) = read_mix(prompts, tokenizer, 512, 10_000)
    assert not asked.counted.any()
    assert "How are you?" in tokenizer.decode(asked.tokens.tolist())


def test_what_is_asked_ends_where_the_first_answer_begins() -> None:
    system = {"role": "system", "content": "Be brief."}
    record = {"messages": [system, *talk("a", "b", "c", "d")["messages"]]}
    assert read_prompt(record) == [system, {"role": "user", "content": "a"}]
    assert read_prompt({"messages": [{"role": "assistant", "content": "a"}]}) is None
    assert read_prompt({"question": " "}) is None


def test_a_template_that_refuses_a_record_is_told_with_its_line(tmp_path: Path) -> None:
    tokenizer = find_tokenizer("{{ raise_exception('no') }}")
    path = write(tmp_path / "a.jsonl", {"prompt": "a"})
    with pytest.raises(CompressionError, match=r"a\.jsonl, line 1: .*no"):
        list(read_mix(path, tokenizer, 512, 1000))


@pytest.mark.parametrize("line", ["[1]", "{", '{"messages": 3}', '{"messages": ["a"]}'])
def test_a_bad_line_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(talk("a", "b")) + "\n" + line + "\n")
    with pytest.raises(CompressionError, match="line 2"):
        list(read_mix(path, find_tokenizer(templates.CHATML), 512, 10_000))


# overlap


@pytest.mark.parametrize(
    ("learned", "judged", "same"),
    [
        ("Who wrote the novel Moby Dick?", "who wrote the novel moby dick", True),
        ("Tell me: who wrote the novel Moby Dick, and when?", "Who wrote the novel Moby Dick?", True),
        ("What is the capital of France?", "What is the capital of Peru?", False),
        ("Hello there", "hello, there!", False),  # too short to mean anything
        ("Hello there, can you help me?", "Hello there", False),
        ("Who was the first president of the United States?",
         "Who is the present president of the United States?", False),
    ],
)  # fmt: skip
def test_a_prompt_overlaps_where_it_holds_most_of_another(
    learned: str, judged: str, same: bool
) -> None:
    found = find_repeated_prompts([(learned, "row 1")], [("Nothing alike", "x"), (judged, "row 7")])
    assert found == ([("row 1", "row 7")] if same else [])


def test_prompts_that_judge_are_refused_with_their_rows(tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", talk("b", "c"), talk("Who wrote the book Dune?", "F"))
    learned = write(
        tmp_path / "learned.jsonl", {"question": "Why?"}, {"question": "Who wrote the book Dune?"}
    )
    with pytest.raises(
        CompressionError, match=r"learned\.jsonl, line 2 as .*judged\.jsonl, line 2"
    ):
        check_no_overlap(learned, judged)
    check_no_overlap(
        write(tmp_path / "other.jsonl", {"question": "What is a dune made of?"}), judged
    )
    check_no_overlap(write_text(tmp_path / "text.txt", 1000), judged)


def test_all_questions_that_a_model_will_be_asked_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are named, and those that are fetched only when the model is asked."""
    home, store = Home(tmp_path / "home"), Store(tmp_path / "store")
    capital = write(tmp_path / "countries.jsonl", {"question": "What is the capital of Peru?", "answer": "Lima"})  # fmt: skip
    fetched = []

    def fetch(name: str, *_: Any) -> Path:
        fetched.append(name)
        if name != "countries":
            raise SourceError("no network")
        return capital

    monkeypatch.setattr("thrifty.compress.overlap.fetch_set", fetch)
    notes: list[str] = []
    own = Question((("user", "Who wrote the book Dune?"),), ("Herbert",))
    for text, questions in (
        ("Who wrote the book Dune?", [("exam.jsonl", own)]), ("What is the capital of Peru?", []),
    ):  # fmt: skip
        learned = as_mix(write(tmp_path / "learned.jsonl", {"question": text}))
        with pytest.raises(CompressionError, match=r"learned\.jsonl, line 1 as"):
            check_apart(learned, (), home, store, notes.append, questions=questions)
    learned = as_mix(write(tmp_path / "learned.jsonl", {"question": "Who wrote the book Dune?"}))
    assert check_apart(learned, (), home, store, notes.append) == learned
    assert set(fetched) == set(DEFAULT_SETS)
