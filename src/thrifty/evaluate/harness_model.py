"""One of our models behind the interface of lm-evaluation-harness. Imports that package.

Log-likelihoods are computed as its own PyTorch class (`hf`) does: the same tokens, the same
truncation, the same windows of a long text. Answers are generated greedily; tasks that sample are
refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from thrifty.errors import EvaluationError
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.evaluate.scorer import Scorer
from thrifty.evaluate.tasks import (
    encode_pair,
    encode_start,
    find_prefix,
    score_end,
    write_answer,
)
from thrifty.evaluate.windows import TokenArray
from thrifty.types import OnProgress, Progress, ignore_progress

MOST_TOKENS = 256
"""The most tokens of an answer, if the task does not set a limit."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names of that limit in tasks; the first that exists is used."""


class HarnessModel(LM):  # type: ignore[misc]
    """Answers requests with a `Scorer`; recorded answers are not computed again."""

    def __init__(
        self, scorer: Scorer, kept: KeptAnswers, on_progress: OnProgress = ignore_progress
    ) -> None:
        super().__init__()
        self._scorer = scorer
        self._kept = kept
        self._on_progress = on_progress

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation after its context, and whether it is greedy.

        Continuations that differ only in their last token, such as the letters of options, are
        scored in one pass.
        """
        found: list[tuple[float, bool]] = []
        pairs = (request.args for request in requests)
        encoded = ((pair, *self._encode_unknown(*pair)) for pair in pairs)
        for _, group in itertools.groupby(encoded, lambda one: _all_but_last(one[1], one[2])):
            together = list(group)
            fresh = [(tokens, count) for _, tokens, count in together if tokens is not None]
            scored = self._score_together(fresh)
            for (context, continuation), tokens, _ in together:
                if tokens is not None:
                    answer = next(scored)
                    self._kept.add(list(answer), "loglikelihood", context, continuation)
                total, greedy = self._kept.find("loglikelihood", context, continuation)
                found.append((total, greedy))
                self._tell(len(found), len(requests))
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each whole text, in windows as long as the model accepts."""
        found: list[float] = []
        for request in requests:
            (text,) = request.args
            total = self._kept.find("rolling", text)
            if total is None:
                total = sum(score_end(self._scorer, *window)[0] for window in self._roll(text))
                self._kept.add(total, "rolling", text)
            found.append(total)
            self._tell(len(found), len(requests))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text generated after each context, up to a stop string."""
        found: list[str] = []
        for request in requests:
            context, settings = request.args
            stop, most = _read_settings(settings)
            text = self._kept.find("generate", context, stop, most)
            if text is None:
                text = write_answer(self._scorer, context, stop, most, leading=False)
                self._kept.add(text, "generate", context, stop, most)
            found.append(text)
            self._tell(len(found), len(requests))
        return found

    @property
    def tokenizer_name(self) -> str:
        """What separates one model's cached requests from another's."""
        return self._scorer.identity

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation as a prompt."""
        return self._scorer.tokenizer.render_chat(
            chat_history, add_generation_prompt=add_generation_prompt
        )

    def _encode_unknown(self, context: str, continuation: str) -> tuple[TokenArray | None, int]:
        if self._kept.find("loglikelihood", context, continuation) is not None:
            return None, 0
        return encode_pair(self._scorer, context, continuation)

    def _score_together(
        self, pairs: Sequence[tuple[TokenArray, int]]
    ) -> Iterator[tuple[float, bool]]:
        """Score sequences that differ only in their last token."""
        if not pairs:
            return
        tokens, count = pairs[0]
        ids = np.repeat(tokens[1:, None], len(pairs), axis=1)
        ids[-1] = [last[-1] for last, _ in pairs]
        scored = self._scorer.score(tokens, ids)
        totals = scored.logprobs[-count:].sum(axis=0, dtype=np.float64)
        for column in range(len(pairs)):
            greedy = bool((scored.top[-count:] == ids[-count:, column]).all())
            yield float(totals[column]), greedy

    def _roll(self, text: str) -> Iterator[tuple[TokenArray, int]]:
        windows = get_rolling_token_windows(
            token_list=encode_start(self._scorer.tokenizer, text),
            prefix_token=find_prefix(self._scorer),
            max_seq_len=self._scorer.context_length,
            context_len=1,
        )
        for context, predicted in map(make_disjoint_window, windows):
            yield np.array([*context, *predicted], dtype=np.int64), len(predicted)

    def _tell(self, done: int, total: int) -> None:
        self._on_progress(Progress("answer", done, total, "requests"))


def _all_but_last(tokens: TokenArray | None, count: int) -> tuple[bytes, int]:
    return (b"" if tokens is None else tokens[:-1].tobytes(), count)


def _read_settings(settings: dict[str, Any]) -> tuple[list[str], int]:
    """The stop strings and the token limit. Raises `EvaluationError` for sampling."""
    sampled = settings.get("do_sample")
    if sampled is None:
        sampled = float(settings.get("temperature") or 0) > 0
    if sampled or int(settings.get("num_beams") or 1) > 1:
        raise EvaluationError(
            "the task asks for sampled answers (do_sample, temperature, num_beams); answers are "
            "generated greedily here, so that models can be compared item by item"
        )
    until = settings.get("until") or []
    stop = [until] if isinstance(until, str) else [str(one) for one in until]
    most = next((settings[name] for name in _LENGTHS if settings.get(name)), MOST_TOKENS)
    return [one for one in stop if one], int(most)
