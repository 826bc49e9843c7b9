"""One answer as it grows: tokens to text, stop conditions, log-probabilities."""

from __future__ import annotations

from typing import Any

from thrifty.engines.server.backend import Output
from thrifty.engines.server.request import GenerationRequest
from thrifty.text.reasoning import ReasoningSplitter
from thrifty.text.tokenizer import IncrementalText, TextTokenizer


class Choice:
    """The state of one choice. `finish_reason` is None while more may come."""

    __slots__ = (
        "_eos_ids",
        "_min_tokens",
        "_new_reasoning",
        "_splitter",
        "_stop_ids",
        "_text",
        "_tokenizer",
        "_want_logprobs",
        "cached_tokens",
        "finish_reason",
        "index",
        "job",
        "logprobs",
        "parts",
        "reasoning_parts",
        "tokens",
    )

    def __init__(self, index: int, request: GenerationRequest, tokenizer: TextTokenizer) -> None:
        self.index = index
        self.job = -1
        self.tokens = 0
        self.cached_tokens = 0
        self.finish_reason: str | None = None
        self.parts: list[str] = []
        self.reasoning_parts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self._text = IncrementalText(tokenizer, request.stops)
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(request.sampling.stop_token_ids)
        self._eos_ids = frozenset(request.eos_token_ids)
        self._min_tokens = request.sampling.min_tokens
        self._want_logprobs = request.sampling.logprobs
        self._new_reasoning = ""
        tags = tokenizer.reasoning_tags if request.separates_reasoning else None
        self._splitter: ReasoningSplitter | None = None
        if tags is not None:
            self._splitter = ReasoningSplitter(tags, begun=request.within_reasoning)

    def feed(self, output: Output) -> tuple[str, list[dict[str, Any]]]:
        """Take new tokens; return the text and log-probabilities that are now certain.

        Tokens after a stop condition are dropped. When this sets `finish_reason` although the
        backend goes on, the caller cancels the job.
        """
        if self.finish_reason is not None:
            return "", []
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        pieces: list[str] = []
        details: list[dict[str, Any]] = []
        for position, token_id in enumerate(output.token_ids):
            self.tokens += 1
            past_minimum = self.tokens > self._min_tokens
            if token_id in self._stop_ids and past_minimum:
                self.finish_reason = "stop"
                break
            last = position == len(output.token_ids) - 1
            if last and output.finish == "stop" and token_id in self._eos_ids:
                # It ended the answer and is no part of it, though it was generated.
                break
            pieces.append(self._text.feed(token_id, check_stops=past_minimum))
            if self._want_logprobs and output.logprobs is not None:
                details.append(self._describe(token_id, output.logprobs[position]))
            if self._text.stopped:
                self.finish_reason = "stop"
                break
        if self.finish_reason is None and output.finish:
            self.finish_reason = output.finish
        if self.finish_reason is not None and not self._text.stopped:
            pieces.append(self._text.flush())
        text = "".join(pieces)
        if self._splitter is not None:
            reasoning, text = self._splitter.feed(text, last=self.finish_reason is not None)
            if reasoning:
                self.reasoning_parts.append(reasoning)
                self._new_reasoning += reasoning
        if text:
            self.parts.append(text)
        self.logprobs += details
        return text, details

    @property
    def text(self) -> str:
        """All text so far, without the model's reasoning."""
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        """The model's reasoning so far, where it is kept apart."""
        return "".join(self.reasoning_parts)

    def take_reasoning(self) -> str:
        """The reasoning that has come since the last call."""
        taken, self._new_reasoning = self._new_reasoning, ""
        return taken

    def _describe(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._tokenizer.token_text(token_id),
            "logprob": logprob,
            "bytes": list(self._tokenizer.token_bytes(token_id)),
            "top_logprobs": [],
        }
