r"""Questions with known answers: multiple choice by log-likelihood, yes or no, exact match.

A task is a file of JSON lines, one item each:

    {"context": "Q: ...\\nA:", "choices": [" red", " blue"], "answer": 0}
    {"prompt": "Q: ...\\nA:", "answers": ["blue"], "stop": ["\\n"]}

The first is answered by the choice whose text the model finds likeliest behind the context, the second
by what the model writes, greedily. Log-likelihoods are taken as lm-evaluation-harness takes them.
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
"""How many tokens a written answer may have."""


@dataclass(frozen=True)
class MultipleChoiceItem:
    """One multiple-choice item."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class OpenItem:
    """One item whose answer is written."""

    prompt: str
    answers: tuple[str, ...]
    stop: tuple[str, ...] = ("\n",)


Item = MultipleChoiceItem | OpenItem


@dataclass(frozen=True)
class Answered:
    """How a model did on one item."""

    right: bool
    right_by_length: bool
    """With log-likelihoods divided by the choices' lengths; for written answers the same."""
    chosen: str
    """What it answered."""
    margin: float
    """Log-likelihood of the chosen over the next best choice; 0 for written answers."""


def read_task(path: Path, limit: int | None = None) -> list[Item]:
    """The items of a file. Raises `EvaluationError` that names the line at fault."""
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
        raise EvaluationError(f"{path} holds no items")
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
                    f"{where}: 'answer' must be the number of one of two or more choices, from 0"
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


def answer_items(scorer: Scorer, items: Sequence[Item]) -> Iterator[Answered]:
    """How `scorer` does on each item, in their order."""
    for item in items:
        yield (
            answer_choice(scorer, item)
            if isinstance(item, MultipleChoiceItem)
            else _answer_open(scorer, item)
        )


def answer_choice(scorer: Scorer, item: MultipleChoiceItem) -> Answered:
    """The likeliest choice."""
    totals = np.array([log_likelihood(scorer, item.context, c)[0] for c in item.choices])
    by_length = totals / np.array([max(1, len(choice)) for choice in item.choices])
    chosen = int(totals.argmax())
    ordered = np.sort(totals)
    return Answered(
        chosen == item.answer,
        int(by_length.argmax()) == item.answer,
        item.choices[chosen],
        float(ordered[-1] - ordered[-2]),
    )


def log_likelihood(scorer: Scorer, context: str, continuation: str) -> tuple[float, bool]:
    """The log-probability of `continuation` behind `context`, and whether greedy decoding would
    write it.
    """
    return score_end(scorer, *encode_pair(scorer, context, continuation))


def score_end(scorer: Scorer, tokens: TokenArray, count: int) -> tuple[float, bool]:
    """The log-probability of the last `count` tokens, and whether greedy decoding would write them."""
    scored = scorer.score(tokens, tokens[1:, None])
    greedy = bool((scored.top[-count:] == tokens[-count:]).all())
    return float(scored.logprobs[-count:, 0].sum(dtype=np.float64)), greedy


def encode_pair(scorer: Scorer, context: str, continuation: str) -> tuple[TokenArray, int]:
    """The tokens of both, at most as many as the model takes and the one that comes last, which it
    only predicts; and how many are the continuation's.

    Spaces at the end of a context belong to the continuation: tokens mostly begin with a space. Where
    there is no context, the token for the start is it, or the one for the end.
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
            f"a choice has {count} tokens, and the model takes {scorer.context_length}"
        )
    return np.array(whole[-(scorer.context_length + 1) :], dtype=np.int64), count


def encode_start(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The tokens of a text that begins here: with the token for the start, once, where the tokenizer
    puts one there.
    """
    start = tokenizer.encode("")[:1]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return tokens if start and tokens[:1] == start else start + tokens


def find_prefix(scorer: Scorer) -> int:
    """What stands for an empty context. Raises `EvaluationError` where the tokenizer has nothing."""
    for name in ("bos_token", "eos_token"):
        found = scorer.tokenizer.special_id(name)
        if found is not None:
            return found
    raise EvaluationError("an item without a context needs a tokenizer with a token for the start")


def _answer_open(scorer: Scorer, item: OpenItem) -> Answered:
    text = write_answer(scorer, item.prompt, item.stop, ANSWER_TOKENS)
    right = normalize_answer(text) in {normalize_answer(answer) for answer in item.answers}
    return Answered(right, right, text.strip(), 0.0)


def write_answer(
    scorer: Scorer, prompt: str, stop: Sequence[str], most: int, *, leading: bool = True
) -> str:
    """What the model writes greedily behind `prompt`, up to one of `stop`, which is left out.

    With `leading`, spaces and line ends before the first word stop nothing.
    """
    if most >= scorer.context_length:
        raise EvaluationError(
            f"an answer of {most} tokens is asked for, and {scorer.label} takes "
            f"{scorer.context_length} with the question"
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
    """Lower case, without punctuation, articles and doubled spaces. Rajpurkar et al. 2016."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in bare.split() if word not in {"a", "an", "the"})
