r"""Questions with known answers: multiple choice by log-likelihood, and exact match.

A task is a file of JSON lines, one item each:

    {"context": "Q: ...\\nA:", "choices": [" red", " blue"], "answer": 0}
    {"prompt": "Q: ...\\nA:", "answers": ["blue"], "stop": ["\\n"]}

The first is answered with the choice that is likeliest after the context, the second with text that
the model generates greedily. Log-likelihoods are computed as lm-evaluation-harness does.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from thrifty.errors import EvaluationError
from thrifty.evaluate.scorer import Scorer
from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer

ANSWER_TOKENS = 32
"""The most tokens of a generated answer."""


@dataclass(frozen=True)
class MultipleChoiceItem:
    """One multiple-choice item."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class OpenItem:
    """One item with a generated answer."""

    prompt: str
    answers: tuple[str, ...]
    stop: tuple[str, ...] = ("\n",)


Item = MultipleChoiceItem | OpenItem


@dataclass(frozen=True)
class ItemResult:
    """A model's result on one item."""

    right: bool
    right_by_length: bool
    """With log-likelihoods divided by the choices' lengths; for generated answers, as `right`."""
    chosen: str
    """The model's answer."""
    margin: float
    """The chosen minus the next best choice's log-likelihood; 0 for generated answers."""


def read_task(path: Path, limit: int | None = None) -> list[Item]:
    """The items of a file. Raises `EvaluationError` with the line at fault."""
    items: list[Item] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            items.append(_read_item(line, f"{path}, line {number}"))
            if limit is not None and len(items) >= limit:
                break
    if not items:
        raise EvaluationError(f"{path} contains no items")
    return items


def _read_item(line: str, where: str) -> Item:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise EvaluationError(f"{where}: not a line of JSON") from None
    if isinstance(record, dict):
        choices, answer = record.get("choices"), record.get("answer")
        if _are_texts(choices) and isinstance(record.get("context"), str):
            if len(choices) < 2 or type(answer) is not int or not 0 <= answer < len(choices):
                raise EvaluationError(
                    f"{where}: 'answer' must be the number of one of at least two choices, from 0"
                )
            return MultipleChoiceItem(record["context"], tuple(choices), answer)
        answers, stop = record.get("answers"), record.get("stop", ["\n"])
        if _are_texts(answers) and answers and isinstance(record.get("prompt"), str):
            if not _are_texts(stop):
                raise EvaluationError(f"{where}: 'stop' must be a list of strings")
            return OpenItem(record["prompt"], tuple(answers), tuple(stop))
    raise EvaluationError(
        f"{where}: an item has 'context', 'choices' and 'answer', or 'prompt' and 'answers'"
    )


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def answer_items(scorer: Scorer, items: Sequence[Item]) -> Iterator[ItemResult]:
    """Yield the result of `scorer` on each item, in order."""
    for item in items:
        yield (
            answer_choice(scorer, item)
            if isinstance(item, MultipleChoiceItem)
            else _answer_open(scorer, item)
        )


def answer_choice(scorer: Scorer, item: MultipleChoiceItem) -> ItemResult:
    """Answer with the likeliest choice."""
    totals = np.array([log_likelihood(scorer, item.context, c)[0] for c in item.choices])
    by_length = totals / np.array([max(1, len(choice)) for choice in item.choices])
    chosen = int(totals.argmax())
    ordered = np.sort(totals)
    return ItemResult(
        chosen == item.answer,
        int(by_length.argmax()) == item.answer,
        item.choices[chosen],
        float(ordered[-1] - ordered[-2]),
    )


def log_likelihood(scorer: Scorer, context: str, continuation: str) -> tuple[float, bool]:
    """The log-probability of `continuation` after `context`, and whether greedy decoding would
    generate it.
    """
    return score_end(scorer, *encode_pair(scorer, context, continuation))


def score_end(scorer: Scorer, tokens: TokenArray, count: int) -> tuple[float, bool]:
    """The log-probability of the last `count` tokens, and whether greedy decoding generates
    them.
    """
    scored = scorer.score(tokens, tokens[1:, None])
    greedy = bool((scored.top[-count:] == tokens[-count:]).all())
    return float(scored.logprobs[-count:, 0].sum(dtype=np.float64)), greedy


def encode_pair(scorer: Scorer, context: str, continuation: str) -> tuple[TokenArray, int]:
    """The tokens of both, and how many are the continuation's.

    They are truncated on the left to what the model accepts plus the last token, which is only
    predicted. Spaces at the end of the context move to the continuation, because most tokens begin
    with a space. An empty context becomes the start-of-text token, or the end-of-text token.
    """
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    head = encode_start(scorer.tokenizer, bare)
    whole = encode_start(scorer.tokenizer, bare + continuation)
    if not head:
        head = [find_prefix(scorer)]
        if whole[:1] != head:
            whole = head + whole
    count = max(1, len(whole) - len(head))
    if count > scorer.context_length:
        raise EvaluationError(
            f"a choice has {count} tokens, and the model accepts {scorer.context_length}"
        )
    return np.array(whole[-(scorer.context_length + 1) :], dtype=np.int64), count


def encode_start(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The tokens of a text from its start; begins with the start-of-text token exactly once, if the
    tokenizer adds one.
    """
    start = tokenizer.encode("")[:1]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return tokens if start and tokens[:1] == start else start + tokens


def find_prefix(scorer: Scorer) -> int:
    """The token that replaces an empty context. Raises `EvaluationError` if there is none."""
    for name in ("bos_token", "eos_token"):
        found = scorer.tokenizer.special_id(name)
        if found is not None:
            return found
    raise EvaluationError("an item without a context needs a tokenizer with a start-of-text token")


def _answer_open(scorer: Scorer, item: OpenItem) -> ItemResult:
    text = write_answer(scorer, item.prompt, item.stop, ANSWER_TOKENS)
    right = normalize_answer(text) in {normalize_answer(answer) for answer in item.answers}
    return ItemResult(right, right, text.strip(), 0.0)


def write_answer(
    scorer: Scorer, prompt: str, stop: Sequence[str], most: int, *, leading: bool = True
) -> str:
    """The text that the model generates greedily after `prompt`, up to one of `stop`.

    With `leading`, stop strings in the whitespace before the first word are ignored.
    """
    if most >= scorer.context_length:
        raise EvaluationError(
            f"the answer may have {most} tokens, but {scorer.label} accepts only "
            f"{scorer.context_length} including the question"
        )
    tokenizer = scorer.tokenizer
    tokens = encode_start(tokenizer, prompt)[-(scorer.context_length - most) :]
    text = ""
    written: list[int] = []
    for token in scorer.generate(np.array(tokens, dtype=np.int64), most):
        written.append(token)
        text = tokenizer.decode(written)
        begin = len(text) - len(text.lstrip()) if leading else 0
        found = [at for one in stop if (at := text.find(one, begin)) >= 0]
        if found:
            return text[: min(found)]
    return text


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces. Rajpurkar et al. 2016."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in bare.split() if word not in {"a", "an", "the"})
