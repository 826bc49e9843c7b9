"""One answer as it grows: tokens to text, stop conditions, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.engines.server.backend import Output
from thrifty.engines.server.log_probabilities import TokenDetail, detail_prompt
from thrifty.engines.server.request import GenerationRequest
from thrifty.openai.fields import Endpoint
from thrifty.text.reasoning import ReasoningSplitter
from thrifty.text.tokenizer import IncrementalText, TextTokenizer


class Choice:
    """The state of one choice. `finish_reason` is None while more may come."""

    __slots__ = (
        "_eos_ids",
        "_held",
        "_keeps_end",
        "_length",
        "_min_tokens",
        "_new_reasoning",
        "_prompt",
        "_splitter",
        "_stop_ids",
        "_text",
        "_total_logprob",
        "_want_logprobs",
        "cached_tokens",
        "details",
        "finish_reason",
        "index",
        "job",
        "of_prompt",
        "parts",
        "reasoning_parts",
        "tokenizer",
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
        self.details: list[TokenDetail] = []
        """The tokens of the text so far, where log-probabilities are wanted."""
        self.of_prompt: list[TokenDetail] = []
        """Those of the prompt, where they are wanted."""
        self._text = IncrementalText(tokenizer, request.stops)
        self._length = 0
        self._held: list[TokenDetail] = []
        self.tokenizer = tokenizer
        self._prompt = request.prompt_of(index)
        self._stop_ids = frozenset(request.sampling.stop_token_ids)
        self._eos_ids = frozenset(request.eos_token_ids)
        self._min_tokens = request.sampling.min_tokens
        self._want_logprobs = request.logprobs
        # A chat's tokens make up its text. A completion's are all that were generated, as clients
        # of the older dialect count on.
        self._keeps_end = request.endpoint is Endpoint.COMPLETIONS
        self._total_logprob = 0.0
        self._new_reasoning = ""
        tags = tokenizer.reasoning_tags if request.separates_reasoning else None
        self._splitter: ReasoningSplitter | None = None
        if tags is not None:
            self._splitter = ReasoningSplitter(tags, begun=request.within_reasoning)

    def feed(self, output: Output) -> tuple[str, list[TokenDetail]]:
        """Take new tokens; return the text that is now certain, with its tokens where
        log-probabilities are wanted.

        Tokens after a stop condition are dropped. When this sets `finish_reason` although the
        backend goes on, the caller cancels the job.
        """
        if self.finish_reason is not None:
            return "", []
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        if output.prompt is not None:
            self.of_prompt = detail_prompt(self._prompt, output.prompt, self.tokenizer)
        pieces: list[str] = []
        for position, token_id in enumerate(output.token_ids):
            self.tokens += 1
            past_minimum = self.tokens > self._min_tokens
            last = position == len(output.token_ids) - 1
            stops = token_id in self._stop_ids and past_minimum
            # A token that ended the answer is no part of its text, though it was generated.
            ends = stops or (last and output.finish == "stop" and token_id in self._eos_ids)
            self._note(output, position, keep=not ends or self._keeps_end)
            if stops:
                self.finish_reason = "stop"
            if ends:
                break
            pieces.append(self._text.feed(token_id, check_stops=past_minimum))
            if self._text.stopped:
                self.finish_reason = "stop"
                break
        if self.finish_reason is None and output.finish:
            self.finish_reason = output.finish
        if self.finish_reason is not None and not self._text.stopped:
            pieces.append(self._text.flush())
        text = "".join(pieces)
        self._length += len(text)
        if self._splitter is not None:
            reasoning, text = self._splitter.feed(text, last=self.finish_reason is not None)
            if reasoning:
                self.reasoning_parts.append(reasoning)
                self._new_reasoning += reasoning
        if text:
            self.parts.append(text)
        details = self._release()
        self.details += details
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

    @property
    def mean_logprob(self) -> float:
        """The log-probability of its tokens, on average."""
        return self._total_logprob / max(1, self.tokens)

    def _note(self, output: Output, position: int, *, keep: bool) -> None:
        if output.logprobs is None:
            return
        logprob = output.logprobs[position]
        self._total_logprob += logprob
        if self._want_logprobs and keep:
            top = output.top[position] if output.top is not None else []
            token_id = output.token_ids[position]
            self._held.append(TokenDetail(token_id, logprob, top, self._text.length))

    def _release(self) -> list[TokenDetail]:
        """The tokens whose text has come. At a stop string, those that begin in it are dropped."""
        held = self._held
        if self.finish_reason is not None and not self._text.stopped:
            count = len(held)
        else:
            count = sum(detail.offset < self._length for detail in held)
        self._held = held[count:]
        return held[:count]


def choose_best(choices: Sequence[Choice], request: GenerationRequest) -> list[Choice]:
    """For each prompt the `n` choices whose tokens are likeliest on average, best first."""
    if request.candidates == request.n:
        return list(choices)
    chosen: list[Choice] = []
    for begin in range(0, len(choices), request.candidates):
        group = choices[begin : begin + request.candidates]
        chosen += sorted(group, key=lambda choice: -choice.mean_logprob)[: request.n]
    return chosen
