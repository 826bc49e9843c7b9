"""What trusted users judged, held out from all training: whether a new version follows them.

Of each judged answer the candidate's mean log-probability of a token is compared with that of the
version that serves. A liked answer, or a correction, should not become less likely, a disliked one
not more likely. The change, with its sign turned for disliked answers, is a mean over answers on
the scale of logarithms, as for text, and must be shown not to be worse by the margin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from thrifty.artifacts import NamedVersion, Store
from thrifty.data.built import BuiltSet
from thrifty.errors import EvaluationError
from thrifty.evaluate.gate_record import TRUSTED
from thrifty.evaluate.open_model import open_model
from thrifty.evaluate.scorer import Scorer
from thrifty.improve.gate.items import find_responses
from thrifty.improve.gate.judge import Slice
from thrifty.statistics.paired import p_mean_not_worse, p_mean_worse
from thrifty.train.examples import Example, encode_row
from thrifty.train.rows import Message, Method, Row, parse_row
from thrifty.types import OnProgress, Progress

LEAST, MOST = 20, 400
"""Fewer judgements do not judge; of more, the first by their order in the set."""
SHOWN = 3


def judge_trusted(
    store: Store,
    built: BuiltSet,
    candidate: NamedVersion,
    against: NamedVersion,
    margin: float,
    on_progress: OnProgress,
) -> Slice | None:
    """The slice of what trusted users judged; None where they judged too little. Blocks. Raises
    `EvaluationError`.
    """
    lines = [line for one in built.files for line in _read(built.folder / one.path)]
    rows = [found for number, line in enumerate(lines[:MOST]) if (found := _parse(line, number))]
    if len(rows) < LEAST:
        return None
    new, old = (_score(store, one, rows, on_progress) for one in (candidate, against))
    pairs = [
        (row, first - second)
        for row, first, second in zip(rows, new, old, strict=True)
        if math.isfinite(first) and math.isfinite(second)
    ]
    if len(pairs) < LEAST:
        return None
    changes = np.array([change if row.label else -change for row, change in pairs])
    return make_slice(changes, [row for row, _ in pairs], built.label, margin)


def make_slice(changes: np.ndarray, rows: Sequence[Row], name: str, margin: float) -> Slice:
    """The slice of changes in nats per token, one for each judged answer, above zero where the new
    version follows what was judged.
    """
    change = float(changes.mean())
    error = float(changes.std(ddof=1)) / math.sqrt(len(changes))
    bound = -math.log(1 - margin)
    followed = float((changes > 0).mean())
    worst = np.argsort(changes)[:SHOWN]
    examples = [
        {"question": _say(rows[number].messages), "against": _say(rows[number].answers),
         "candidate": f"{'liked' if rows[number].label else 'disliked'}, and {changes[number]:+.2f} nats "
         "per token", "responses": find_responses(json.loads(rows[number].raw or b"{}"))}
        for number in worst.tolist() if changes[number] < 0
    ]  # fmt: skip
    low, high = (math.expm1(change + side * 1.959964 * error) for side in (-1, 1))
    needed = math.ceil(len(changes) * (2.5 * error / bound) ** 2) if error > 0 else None
    return Slice(
        TRUSTED, name, len(changes), followed, 1 - followed, None, math.expm1(change), low, high,
        p_mean_not_worse(change, error, bound), p_mean_worse(change, error), primary=True,
        needed=needed, examples=examples,
    )  # fmt: skip


def _say(messages: Sequence[Message]) -> str:
    return str(messages[-1].get("content") or "")


def _read(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def _parse(line: bytes, number: int) -> Row | None:
    row = parse_row(line, number, Method.KTO)
    return replace(row, raw=line) if isinstance(row, Row) else None


def _score(
    store: Store, version: NamedVersion, rows: Sequence[Row], on_progress: OnProgress
) -> list[float]:
    """The mean log-probability of a token of each answer; NaN for one that cannot be scored."""
    scorer = open_model(version.label, store, on_progress=on_progress)
    try:
        found = []
        for number, row in enumerate(rows):
            window = min(scorer.context_length, 4096)
            examples = encode_row(row, Method.KTO, scorer.tokenizer, window)
            found.append(math.nan if isinstance(examples, str) else score(scorer, examples[0]))
            on_progress(Progress("trusted users", number + 1, len(rows), "answers"))
        return found
    finally:
        scorer.close()


def score(scorer: Scorer, example: Example) -> float:
    """The mean log-probability of the tokens of an answer, in nats."""
    text = example.texts[0]
    tokens = np.array(text.tokens, np.int64)
    if tokens.max() >= scorer.vocab_size:
        raise EvaluationError(f"{scorer.label} has another vocabulary than its tokenizer says")
    found = scorer.score(tokens, tokens[1:, None]).logprobs[:, 0]
    return float(found[text.mask()].mean())
