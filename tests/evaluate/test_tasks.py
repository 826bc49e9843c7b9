"""Questions with known answers."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from tests.evaluate.bigram import Bigram
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import EvaluationError
from thrifty.evaluate.task_result import compare_answers
from thrifty.evaluate.tasks import (
    ItemResult,
    MultipleChoiceItem,
    OpenItem,
    answer_items,
    encode_pair,
    encode_start,
    log_likelihood,
    normalize_answer,
    read_task,
)
from thrifty.text.tokenizer import TextTokenizer

MODEL = Bigram(0)


def by_hand(context: str, continuation: str) -> float:
    tokens = (context + continuation).encode()
    pairs = list(itertools.pairwise(tokens))[-len(continuation) :]
    return float(sum(MODEL.table[a, b] for a, b in pairs))


def test_log_likelihood_is_the_sum_over_the_continuation() -> None:
    for context, continuation in (("What is", " it"), ("Q: a\nA:", " yes"), ("x", "y")):
        found, _ = log_likelihood(MODEL, context, continuation)
        assert found == pytest.approx(by_hand(context, continuation), abs=1e-4)


def test_spaces_at_a_contexts_end_belong_to_the_continuation() -> None:
    tokens, count = encode_pair(MODEL, "Is it  ", "so")
    assert (bytes(tokens.tolist()), count) == (b"Is it  so", 4)
    assert log_likelihood(MODEL, "Is it ", "so") == log_likelihood(MODEL, "Is it", " so")


def test_greedy_means_that_it_would_be_written() -> None:
    written = list(MODEL.generate(np.array([ord("a")]), 1))
    letter = bytes(written).decode("latin-1")
    if ord(letter) < 128:
        assert log_likelihood(MODEL, "a", letter)[1]
    assert not log_likelihood(MODEL, "a", "bcdefgh")[1]


def test_an_overlong_context_loses_its_beginning() -> None:
    tokens, count = encode_pair(MODEL, "a" * 5000, " b")
    assert (len(tokens), count) == (4096 + 1, 2), "the last one is only predicted"
    with pytest.raises(EvaluationError, match="a choice has 5000 tokens"):
        encode_pair(MODEL, "a", "b" * 5000)


def test_the_likeliest_choice_is_the_answer() -> None:
    choices = (" one", " two", " much longer than the others")
    totals = [by_hand("Q: ?\nA:", choice) for choice in choices]
    lengths = [total / len(choice) for total, choice in zip(totals, choices, strict=True)]
    best, best_by_length = int(np.argmax(totals)), int(np.argmax(lengths))
    for answer in range(3):
        (found,) = answer_items(MODEL, [MultipleChoiceItem("Q: ?\nA:", choices, answer)])
        assert found.right == (best == answer)
        assert found.right_by_length == (best_by_length == answer)
        assert found.chosen == choices[best]
        assert found.margin == pytest.approx(sorted(totals)[-1] - sorted(totals)[-2], abs=1e-4)


class Writes(Bigram):
    """Generates one fixed text."""

    def __init__(self, text: str) -> None:
        super().__init__(0)
        self._text = text

    def generate(self, tokens: Any, most: int) -> Any:
        yield from self._text.encode()[:most]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" Paris\nQ: next", True), ("The paris.\n", True), ("\n\nParis\n", True), ("Paris", True),
        ("\nParis\nQ: next", True),
        (" Paris, France\n", False), ("", False),
    ],
)  # fmt: skip
def test_a_written_answer_must_be_one_of_those_known(text: str, right: bool) -> None:
    (found,) = answer_items(Writes(text), [OpenItem("Q: ?\nA:", ("Paris", "City of Light"))])
    assert found.right == found.right_by_length == right


def test_answers_are_compared_by_their_words() -> None:
    assert normalize_answer(" The  Quick, brown FOX! ") == "quick brown fox"
    assert normalize_answer("a cat") == normalize_answer("The cat.")


def test_an_empty_context_is_the_token_for_the_start() -> None:
    with pytest.raises(EvaluationError, match="a start-of-text token"):
        encode_pair(MODEL, "", "so")
    model = Bigram(0)
    model.tokenizer = TextTokenizer(
        model.tokenizer.tokenizer, None, special_tokens={"eos_token": "<|end|>"}
    )
    tokens, count = encode_pair(model, "", "so")
    assert (tokens.tolist(), count) == ([256, *b"so"], 2)
    assert encode_pair(model, "", "<|end|>so")[0].tolist() == [256, *b"so"], "only once"


def test_the_token_for_the_start_comes_once() -> None:
    inner = make_tokenizer().tokenizer
    inner.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 256)]
    )
    tokenizer = TextTokenizer(inner, None)
    assert encode_start(tokenizer, "so") == encode_start(tokenizer, "<|end|>so") == [256, *b"so"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "line 1: not a line of JSON"),
        ('{"context": "a", "choices": ["x"], "answer": 0}', "at least two choices"),
        ('{"context": "a", "choices": ["x", "y"], "answer": 2}', "must be the number of one"),
        ('{"context": "a", "choices": ["x", "y"], "answer": true}', "must be the number of one"),
        ('{"context": "a", "choices": ["x", 5], "answer": 0}', "an item has 'context'"),
        ('{"prompt": "a", "answers": []}', "an item has 'context'"),
        ('{"prompt": "a", "answers": ["b"], "stop": "c"}', "'stop' must be a list"),
        ("[1]", "an item has 'context'"),
        ("", "contains no items"),
    ],
)
def test_items_that_cannot_be_used_are_told_of(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(EvaluationError, match=message):
        read_task(path)


def test_items_are_read_as_far_as_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    items = [{"context": f"{i}", "choices": [" a", " b"], "answer": 1} for i in range(9)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    assert len(read_task(path)) == 9
    assert read_task(path, 4)[3] == MultipleChoiceItem("3", (" a", " b"), 1)


def test_flips_are_counted_both_ways() -> None:
    def answers(rights: str, chosen: str) -> list[dict[str, Any]]:
        return [
            asdict(ItemResult(r == "1", r == "1", c, 0.0))
            for r, c in zip(rights, chosen, strict=True)
        ]

    found = compare_answers(answers("11000", "abccd"), answers("10100", "abbcd"), 0.02)
    assert (found.score.share, found.reference.share) == (0.4, 0.4)
    assert (found.paired.gained, found.paired.lost, found.changed) == (1, 1, 1)
    assert not found.not_inferior
