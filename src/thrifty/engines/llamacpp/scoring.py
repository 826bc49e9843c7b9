"""Log-probabilities that llama.cpp's stream does not tell: of prompts, and of parts of characters."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.engines.llamacpp.process import LlamaProcess
from thrifty.engines.llamacpp.requests import PATH, make_probe, read_scores
from thrifty.engines.server.backend import Ranked, Scores
from thrifty.errors import EngineError


class Scorer:
    """Asks for one token at a time; the slot's KV cache saves computing what came before anew."""

    def __init__(self, process: LlamaProcess, *, vocabulary_size: int, whole_token: int) -> None:
        """`whole_token` is any that spells whole characters."""
        self._process = process
        self._vocabulary_size = vocabulary_size
        self.whole_token = whole_token

    async def find_next(self, prompt: Sequence[int], top: int) -> Ranked:
        """The `top` likeliest tokens behind `prompt`, likeliest first. Raises `EngineError`."""
        (_, _, ranked), *_ = await self._ask(prompt, top, self.whole_token)
        return ranked

    async def score(self, prompt: Sequence[int], token: int, top: int) -> tuple[float, Ranked]:
        """The log-probability of `token` behind `prompt`, and the `top` likeliest in its place.

        Raises `EngineError`.
        """
        found = await self._ask(prompt, top, token)
        if found and found[0][0] == token:
            return found[0][1], found[0][2][:top]
        # It ends within a character, and then llama.cpp tells nothing of it: look it up among all.
        ranked = await self.find_next(prompt, self._vocabulary_size)
        for other, logprob in ranked:
            if other == token:
                return logprob, ranked[:top]
        raise EngineError(f"llama.cpp tells no log-probability of the token {token}")

    async def score_prompt(self, prompt: Sequence[int], top: int) -> Scores:
        """What is told of the tokens of `prompt` behind its first. Raises `EngineError`."""
        scores = Scores([], [])
        for place in range(1, len(prompt)):
            logprob, ranked = await self.score(prompt[:place], prompt[place], top)
            scores.logprobs.append(logprob)
            scores.top.append(ranked)
        return scores

    async def _ask(
        self, prompt: Sequence[int], top: int, token: int
    ) -> list[tuple[int, float, Ranked]]:
        body = make_probe(prompt, top=top, prefix_cache=True, token=token)
        return read_scores(await self._process.ask(PATH, body))
