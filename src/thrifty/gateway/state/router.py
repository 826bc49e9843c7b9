"""Routing for one version: a policy, the learned state, and the count of outstanding work.

For each request, call `describe`, `choose` and `begin`; then `first_token` and `end` on the load
that `begin` returned. The time is passed in.

Token estimates here use the bytes of the prompt and are made only if there is a choice of replicas.
`state/estimate` uses the length of the whole body, escapes included. The ratios differ, and a
router can learn its own without a gateway around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from thrifty.gateway.state.policy import AnyCandidate, LearnedState, RoutingPolicy
from thrifty.gateway.state.rates import DEFAULT_ANSWER_TOKENS, WorkAhead
from thrifty.gateway.state.routed_request import (
    BLOCK_BYTES,
    RoutedRequest,
    hash_blocks,
    hash_conversation,
    read_prompt,
)
from thrifty.gateway.state.share_watch import ShareWatch

DEFAULT_BYTES_PER_TOKEN = 4.0
LEARN = 0.05
MIN_LEARNED_TOKENS = 16
UNKNOWN = RoutedRequest()


class LoadedReplica(Protocol):
    """A replica with counters of outstanding work."""

    in_flight: int
    waiting: int
    prefill_tokens: float
    decode_tokens: float

    @property
    def slot(self) -> int:
        """Its number in the prefix index."""
        ...

    @property
    def id(self) -> str:
        """The replica's id."""
        ...

    @property
    def rates_key(self) -> Any:
        """Replicas with the same key share their speeds."""
        ...


class Outstanding:
    """The load of one request on its replica, from the choice until the last byte."""

    __slots__ = ("_ahead", "_first_s", "_new", "_prefill", "_replica", "_request", "_router",
                 "began_s")  # fmt: skip

    def __init__(
        self, router: Router, replica: LoadedReplica, request: RoutedRequest, now_s: float
    ) -> None:
        self._router, self._replica, self._request = router, replica, request
        self._prefill = request.prompt_tokens
        self._new: Sequence[int] = ()
        if request.blocks:
            self._note_prefix(replica.slot)
        self._ahead: WorkAhead | None = None
        """Known where the request was described: there is a choice of replicas."""
        if request is not UNKNOWN:
            self._ahead = WorkAhead(
                replica.prefill_tokens + self._prefill, replica.in_flight, replica.waiting
            )
        replica.in_flight += 1
        replica.waiting += 1
        replica.prefill_tokens += self._prefill
        replica.decode_tokens += request.decode_tokens
        self.began_s, self._first_s = now_s, 0.0

    def _note_prefix(self, slot: int) -> None:
        request, prefixes = self._request, self._router.learned.prefixes
        shared = request.cached_blocks(slot)
        self._prefill -= request.cached_tokens(slot)
        request.unsure = shared > 0 and prefixes.is_computing(slot, request.blocks[shared - 1])
        self._new = request.blocks[shared:]
        prefixes.begin(slot, self._new)
        prefixes.add(slot, request.blocks)

    def first_token(self, now_s: float) -> None:
        """Record the first byte of the answer: the prompt is computed."""
        self._first_s = now_s
        self._end_prefill()
        if self._ahead is not None:
            self._router.learned.rates_of(self._replica).learn_ttft(
                self._ahead, now_s - self.began_s
            )

    def _end_prefill(self) -> None:
        self._replica.waiting -= 1
        self._replica.prefill_tokens -= self._prefill
        if self._new:
            self._router.learned.prefixes.finish(self._replica.slot, self._new)

    def end(
        self,
        now_s: float,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        cached_tokens: int | None = None,
        streamed: bool = False,
    ) -> None:
        """Record the end of the request, with or without an answer. Token counts are those the
        engine reported, or 0; `cached_tokens` is None if the engine does not report it.
        """
        replica, request = self._replica, self._request
        if not self._first_s:
            self._end_prefill()
        running = replica.in_flight
        replica.in_flight -= 1
        replica.decode_tokens -= request.decode_tokens
        if replica.in_flight == 0:
            # Remove rounding errors.
            replica.prefill_tokens = replica.decode_tokens = 0.0
        if request is UNKNOWN or not completion_tokens:
            return
        self._router.learn_answer(replica, request, prompt_tokens, completion_tokens, cached_tokens)
        if streamed and self._first_s:
            self._router.learned.rates_of(replica).learn_decode(
                completion_tokens, now_s - self._first_s, running
            )


class Router:
    """Chooses replicas for one version."""

    def __init__(self, policy: RoutingPolicy) -> None:
        self._policy = policy
        self.learned = LearnedState()
        self.shares = ShareWatch()
        self._bytes_per_token = DEFAULT_BYTES_PER_TOKEN
        self._answer_tokens = DEFAULT_ANSWER_TOKENS
        self.reported = 0
        """Answers that reported the cached tokens of their prompt."""
        self.silent = 0
        """Answers without such a report since the last one with it."""
        self.signals_lost = False

    def describe(
        self, body: Mapping[str, Any], session: str = "", *, decodes: bool = True
    ) -> RoutedRequest:
        """The properties that routing uses. Needed only if there is a choice of replicas."""
        if self._policy.wants_affinity:
            return RoutedRequest(affinity=hash_conversation(body, session))
        if not self._policy.wants_prefix:
            return UNKNOWN
        prompt = read_prompt(body)
        if not decodes:
            return RoutedRequest(self.count_tokens(len(prompt)))
        blocks = hash_blocks(prompt) if len(prompt) >= BLOCK_BYTES else ()
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        return self.expect(len(prompt), blocks, asked, body.get("n") or 1)

    def expect(
        self, prompt_bytes: int, blocks: Sequence[int], asked: int | None, choices: int = 1
    ) -> RoutedRequest:
        """The expected work of a request whose prompt has these blocks and whose answers end after
        `asked` tokens, if the client bounds them.
        """
        answer = min(self._answer_tokens, asked or self._answer_tokens)
        return RoutedRequest(self.count_tokens(prompt_bytes), answer * choices, blocks)

    def count_tokens(self, prompt_bytes: int) -> float:
        """The estimated tokens of a prompt, at least 1."""
        return max(1.0, prompt_bytes / self._bytes_per_token)

    def choose(self, candidates: Sequence[AnyCandidate], request: RoutedRequest) -> AnyCandidate:
        """Choose a replica for a request; `candidates` must not be empty."""
        if request.blocks:
            # Also for a single candidate, because cached tokens are no load.
            request.levels = self.learned.prefixes.match(request.blocks)
        if len(candidates) == 1:
            return candidates[0]
        chosen = self._policy.choose(candidates, request, self.learned)
        self.shares.note(chosen.id, candidates)
        return chosen

    def begin(self, replica: LoadedReplica, request: RoutedRequest, now_s: float) -> Outstanding:
        """Count a request against its replica."""
        return Outstanding(self, replica, request, now_s)

    def learn_answer(
        self,
        replica: LoadedReplica,
        request: RoutedRequest,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int | None,
    ) -> None:
        """Learn from the token counts that an engine reported for one answer."""
        self._answer_tokens += LEARN * (completion_tokens - self._answer_tokens)
        if prompt_tokens >= MIN_LEARNED_TOKENS:
            estimate = request.prompt_tokens * self._bytes_per_token / prompt_tokens
            self._bytes_per_token += LEARN * (estimate - self._bytes_per_token)
        if cached_tokens is None:
            self.silent += 1
            return
        self.reported += 1
        self.silent = 0
        if request.levels and not request.unsure:
            expected = request.cached_tokens(replica.slot)
            self.learned.prefixes.correct(replica.slot, expected, cached_tokens)

    def set_capacity(self, replica: LoadedReplica, cache_tokens: float) -> None:
        """Set how many tokens a replica's prefix cache holds."""
        tokens_per_block = BLOCK_BYTES / self._bytes_per_token
        self.learned.prefixes.set_capacity(replica.slot, cache_tokens // tokens_per_block)
