"""The echo backend: answers with the prompt's last line, at a settable pace.

Tokens are bytes. A prompt takes `ttft_s` and then `prefill_s` for each token, an answer `tpot_s`
for each token; at most `slots` run at once and the rest wait, as on a real engine. With
`cache_tokens` it remembers that many tokens of the beginnings of prompts, which then take no time.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import struct
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from thrifty.engines.server.backend import (
    Candidates,
    Load,
    ModelFacts,
    OnFailure,
    OnOutput,
    Output,
    Ranked,
    Sampling,
    Scores,
)
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family

EMBEDDING_SIZE = 32
CACHE_BLOCK = 32
_EOS = 256
TEMPLATE = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"


def make_tokenizer() -> TextTokenizer:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # In the order of the bytes they stand for, so that a token's id is its byte.
    order = {_byte_of(character): character for character in alphabet}
    vocabulary = {order[value]: value for value in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return TextTokenizer(tokenizer, TEMPLATE)


def _byte_of(character: str) -> int:
    """The byte that byte-level BPE writes as `character`."""
    code = ord(character)
    if 33 <= code <= 126 or 161 <= code <= 172 or 174 <= code <= 255:
        return code
    unprintable = [*range(33), *range(127, 161), 173]
    return int(unprintable[code - 256])


@dataclass
class _Job:
    number: int
    sampling: Sampling
    on_output: OnOutput
    on_failure: OnFailure
    prompt: list[int]
    reply: list[int]
    prefill_tokens: int
    cached_tokens: int
    sent: int = 0
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class _PrefixCache:
    """Which beginnings of prompts are remembered, in blocks, the least recently used given up."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens // CACHE_BLOCK
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def take(self, prompt: list[int]) -> int:
        """How many of the prompt's tokens are remembered; from now on all of them are."""
        if not self._most:
            return 0
        chain, chains = 0, []
        for end in range(CACHE_BLOCK, len(prompt), CACHE_BLOCK):
            chain = hash((chain, *prompt[end - CACHE_BLOCK : end]))
            chains.append(chain)
        found = next((i for i, c in enumerate(chains) if c not in self._blocks), len(chains))
        for chain in reversed(chains):
            self._blocks[chain] = None
            self._blocks.move_to_end(chain)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return found * CACHE_BLOCK


class EchoBackend:
    """Answers with the prompt's last line."""

    def __init__(
        self,
        *,
        ttft_s: float = 0.0,
        tpot_s: float = 0.0,
        prefill_s: float = 0.0,
        slots: int = 1024,
        context_length: int = 131_072,
        reply: str | None = None,
        load_s: float = 0.0,
        cache_tokens: int = 0,
        family: Family = Family.DECODER,
    ) -> None:
        self._ttft_s = ttft_s
        self._tpot_s = tpot_s
        self._prefill_s = prefill_s
        self._slots = slots
        self._context_length = context_length
        self._reply = reply.encode() if reply is not None else None
        self._load_s = load_s
        self._family = family
        self._cache = _PrefixCache(cache_tokens)
        self._numbers = itertools.count(1)
        self._running: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()

    async def start(self) -> ModelFacts:
        """Be ready after the set time."""
        await asyncio.sleep(self._load_s)
        return ModelFacts(
            self._family, self._context_length, (_EOS,), EMBEDDING_SIZE, {"load_s": self._load_s}
        )

    def submit(
        self,
        prompt: list[int],
        sampling: Sampling,
        on_output: OnOutput,
        on_failure: OnFailure,
        priority: int = 0,
    ) -> int:
        """Begin to answer."""
        number = next(self._numbers)
        reply = self._make_reply(prompt, sampling)
        cached = self._cache.take(prompt)
        job = _Job(
            number, sampling, on_output, on_failure, prompt, reply, len(prompt) - cached, cached
        )
        if len(self._running) < self._slots:
            self._begin(job)
        else:
            self._waiting.append(job)
        return number

    def cancel(self, job: int) -> None:
        """Stop answering."""
        running = self._running.get(job)
        if running is not None:
            self._end(running)
        else:
            self._waiting = deque(waiting for waiting in self._waiting if waiting.number != job)

    async def embed(self, inputs: list[list[int]]) -> list[bytes]:
        """A vector of length one made from a checksum: equal texts, equal vectors."""
        return [_embed(ids) for ids in inputs]

    async def rank(self, candidates: Candidates) -> list[float]:
        """By the share of the query's words that a document has."""
        wanted = set(candidates.query.lower().split())
        shares = (len(wanted & set(text.lower().split())) for text in candidates.documents)
        return [share / max(1, len(wanted)) * 8.0 - 4.0 for share in shares]

    def load(self) -> Load:
        """How busy it is."""
        return Load(len(self._running), len(self._waiting), len(self._running) / self._slots)

    async def park(self) -> None:
        """Nothing: it has no process of its own."""

    async def wait_failed(self) -> str:
        """It does not fail."""
        forever: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await forever

    async def stop(self) -> None:
        """Stop every answer."""
        self._waiting.clear()
        for job in list(self._running.values()):
            self._end(job)

    def _make_reply(self, prompt: list[int], sampling: Sampling) -> list[int]:
        if self._reply is not None:
            text = self._reply
        else:
            lines = bytes(t for t in prompt if t < 256).strip().splitlines()
            text = lines[-1] if lines else b"..."
        if sampling.ignore_eos or sampling.min_tokens > len(text):
            wanted = sampling.max_tokens if sampling.ignore_eos else sampling.min_tokens
            text = (text or b".") * (wanted // max(1, len(text)) + 1)
            text = text[:wanted]
        return list(text[: sampling.max_tokens])

    def _begin(self, job: _Job) -> None:
        self._running[job.number] = job
        delay = self._ttft_s + self._prefill_s * job.prefill_tokens
        self._after(job, delay)

    def _after(self, job: _Job, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        if delay_s > 0:
            job.timer = loop.call_later(delay_s, self._emit, job)
        else:
            loop.call_soon(self._emit, job)

    def _emit(self, job: _Job) -> None:
        if job.number not in self._running:
            return
        # Without a pace there is nothing to wait for between tokens: all come at once.
        count = 1 if self._tpot_s > 0 else len(job.reply)
        sampling, begins = job.sampling, job.sent == 0
        tokens = job.reply[job.sent : job.sent + count]
        job.sent += len(tokens)
        finish = ""
        if job.sent >= len(job.reply):
            finish = "length" if len(job.reply) >= job.sampling.max_tokens else "stop"
        scores = _score(tokens, sampling.top_logprobs) if sampling.logprobs else None
        output = Output(
            job.number, tokens, scores.logprobs if scores is not None else None, finish,
            job.cached_tokens,
            scores.top if scores is not None and sampling.top_logprobs else None,
            _score(job.prompt[1:], sampling.top_logprobs)
            if begins and sampling.prompt_logprobs else None,
        )  # fmt: skip
        if finish:
            self._end(job)
        job.on_output(output)
        if not finish:
            self._after(job, self._tpot_s)

    def _end(self, job: _Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
        self._running.pop(job.number, None)
        if self._waiting and len(self._running) < self._slots:
            self._begin(self._waiting.popleft())


def _score(tokens: list[int], top: int) -> Scores:
    """Every token was certain; others are as good as impossible."""
    ranked: list[Ranked] = [
        [(token, 0.0), *(((token + more) % _EOS, -100.0 - more) for more in range(1, top))]
        for token in tokens
    ]
    return Scores([0.0] * len(tokens), [one[:top] for one in ranked])


def _embed(ids: list[int]) -> bytes:
    digest = hashlib.blake2b(bytes(i & 0xFF for i in ids), digest_size=EMBEDDING_SIZE).digest()
    values = [value - 127.5 for value in digest]
    norm = sum(value * value for value in values) ** 0.5
    return struct.pack(f"<{EMBEDDING_SIZE}f", *(value / norm for value in values))
