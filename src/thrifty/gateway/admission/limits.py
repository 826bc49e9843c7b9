"""Enforces the limits of keys before anything else is done for a request.

With a shared store, counts are kept in Redis and hold across workers and hosts. Without one, or
while it is unavailable, each worker counts alone; budgets still hold across workers, through the
database. Requests counted in Redis are also counted here, so that a worker that loses Redis
continues from its own counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from thrifty.db.keys import Key
from thrifty.gateway.admission.counts import (
    Grant,
    Limit,
    ProcessCounts,
    QuotaRequest,
    QuotaUsage,
    Refusal,
)
from thrifty.gateway.admission.shared_counts import RENEW_S, SharedCounts, SharedGrant
from thrifty.gateway.admission.spend import (
    SpendLedger,
    name_day,
    until_next_day_s,
    until_next_month_s,
)
from thrifty.gateway.state.call import CLIENT_CLOSED, HIT, Call, Origin, ParsedRequest
from thrifty.gateway.state.estimate import compute_cost
from thrifty.gateway.state.version import Version
from thrifty.observe.metrics import GatewayMetrics
from thrifty.openai.errors import RATE_LIMIT, WireError

INSUFFICIENT_QUOTA = "insufficient_quota"
Sizes = tuple[int, int]
"""Estimated tokens of a prompt and of its answer."""


@dataclass(slots=True)
class Reservation:
    """The usage reserved for a call until it ends."""

    key: Key
    prompt: int
    answer: int
    grant: Grant
    shared: SharedGrant | None


class KeyLimiter:
    """Enforces the limits of keys. `clock` returns monotonic seconds."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        ledger: SpendLedger,
        shared: SharedCounts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._ledger = ledger
        self._shared = shared
        self._clock = clock
        self._counts = ProcessCounts()
        self._running: dict[str, dict[str, Reservation]] = {}
        """Requests counted in Redis, by the ids of the key and of the grant."""
        self._reserved: dict[Call, Reservation] = {}
        self._renewed_s = clock()

    def admit(
        self, call: Call, parsed: ParsedRequest, version: Version
    ) -> Coroutine[Any, Any, None] | None:
        """Count a call of a limited key, with the estimates and prices of its version. Returns a
        coroutine to await if Redis counts. Raises a 429 that names the limit.
        """
        key = call.key
        if key is None or not key.limited:
            return None
        request, sizes = self._make_request(call, key, parsed, version)
        if self._shared is not None:
            if self._shared.available:
                return self._admit_shared(call, key, request, sizes, self._shared)
            self._metrics.limit_fallbacks.inc()
        self._admit_here(call, key, request, sizes)
        return None

    def settle(self, call: Call) -> None:
        """Replace the reservation of an ended call by its actual usage."""
        usage, target = call.outcome.usage, call.target
        generated = usage is not None and call.cache.result != HIT
        if target is None or call.origin is Origin.SHADOW:
            return
        version = target.version
        if usage is not None and generated:
            version.estimator.learn(
                len(call.exchange.body), usage.prompt_tokens, usage.completion_tokens
            )
        if call.key is None:
            return
        reservation = self._reserved.pop(call, None)
        tokens, cost = 0, 0.0
        if usage is not None and generated:
            tokens = usage.prompt_tokens + usage.completion_tokens
            cost = compute_cost(
                version.settings,
                usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens,
            )  # fmt: skip
        elif reservation is not None and _was_interrupted(call):
            # If the client hangs up before the token counts arrive, an answer of the mean length is
            # charged.
            answer = min(reservation.answer, round(version.estimator.answer_tokens))
            tokens = reservation.prompt + answer
            cost = compute_cost(version.settings, reservation.prompt, answer)
        if cost:
            self._ledger.add(call.key.id, cost)
        if reservation is None:
            return
        self._counts.of(reservation.key.id).settle(reservation.grant, tokens, self._clock())
        if reservation.shared is not None and self._shared is not None:
            self._running.get(reservation.key.id, {}).pop(reservation.shared.id, None)
            self._shared.settle(
                reservation.key.id, reservation.shared, tokens, cost, name_day(time.time())
            )

    def sweep(self) -> None:
        """Drop old counts and renew the leases of long requests; called about once a second."""
        now_s = self._clock()
        self._counts.prune(now_s)
        if self._shared is not None and now_s - self._renewed_s >= RENEW_S:
            self._renewed_s = now_s
            for key_id, running in list(self._running.items()):
                if running:
                    grants = [
                        reservation.shared
                        for reservation in running.values()
                        if reservation.shared is not None
                    ]
                    self._shared.renew(key_id, grants)
                else:
                    del self._running[key_id]

    def _make_request(
        self, call: Call, key: Key, parsed: ParsedRequest, version: Version
    ) -> tuple[QuotaRequest, Sizes]:
        prompt, answer = version.estimator.estimate(parsed.body, len(call.exchange.body))
        day = month = 0.0
        if key.budget_day is not None or key.budget_month is not None:
            day, month = self._ledger.spent(key.id)
        cost = compute_cost(version.settings, prompt, answer)
        return QuotaRequest(prompt + answer, cost, day, month), (prompt, answer)

    def _admit_here(self, call: Call, key: Key, request: QuotaRequest, sizes: Sizes) -> None:
        counts, now_s = self._counts.of(key.id), self._clock()
        taken = counts.take(key.limits, request, now_s)
        if isinstance(taken, Refusal):
            raise self._refuse(call, key, request, taken, counts.usage(now_s))
        self._reserved[call] = Reservation(key, *sizes, taken, None)
        call.rate_headers = make_headers(key, taken.usage)

    async def _admit_shared(
        self, call: Call, key: Key, request: QuotaRequest, sizes: Sizes, shared: SharedCounts
    ) -> None:
        taken = await shared.take(key.id, key.limits, request, name_day(time.time()))
        if taken is None:
            self._metrics.limit_fallbacks.inc()
            self._admit_here(call, key, request, sizes)
            return
        if isinstance(taken, Refusal):
            raise self._refuse(call, key, request, taken, taken.usage)
        grant = self._counts.of(key.id).count(key.limits, request, self._clock())
        reservation = self._reserved[call] = Reservation(key, *sizes, grant, taken)
        self._running.setdefault(key.id, {})[taken.id] = reservation
        call.rate_headers = make_headers(key, taken.usage)

    def _refuse(
        self,
        call: Call,
        key: Key,
        request: QuotaRequest,
        refusal: Refusal,
        usage: QuotaUsage | None,
    ) -> WireError:
        self._metrics.rejections.labels(call.placed.deployment.name, refusal.limit.value).inc()
        if usage is not None:
            call.rate_headers = make_headers(key, usage)
        return make_refusal(key, request, refusal, time.time())


def make_refusal(key: Key, request: QuotaRequest, refusal: Refusal, at_s: float) -> WireError:
    """The 429 for an exceeded limit. `at_s` is in seconds since 1970."""
    limit, used, wait_s = refusal.limit, refusal.used, refusal.retry_after_s
    if limit in (Limit.BUDGET_DAY, Limit.BUDGET_MONTH):
        daily = limit is Limit.BUDGET_DAY
        budget = key.budget_day if daily else key.budget_month
        what = f"its budget of {budget:g} per {'day' if daily else 'month'}"
        if wait_s is not None:
            return WireError(
                429,
                f"The key {key.name!r} has {used:g} of {what} spent or reserved by running "
                "requests. Retry when they have ended.",
                type=INSUFFICIENT_QUOTA, code="insufficient_quota", retry_after_s=wait_s,
            )  # fmt: skip
        left_s = until_next_day_s(at_s) if daily else until_next_month_s(at_s)
        return WireError(
            429,
            f"The key {key.name!r} has spent {used:g} of {what}. The next {'day' if daily else 'month'} begins "
            f"in {left_s / 3600:.1f} hours (UTC).",
            type=INSUFFICIENT_QUOTA, code="insufficient_quota", retry_after_s=left_s,
        )  # fmt: skip
    # Rounded up, so that a client that waits this long is not too early.
    wait_s = math.ceil(wait_s) if wait_s is not None else 1
    if limit is Limit.CONCURRENCY:
        text = (
            f"The key {key.name!r} may run {key.concurrency} requests at once, and {used:g} are "
            "running. Retry when one has ended."
        )
        return WireError(
            429, text, type=RATE_LIMIT, code="rate_limit_exceeded", retry_after_s=wait_s
        )
    if limit is Limit.REQUESTS:
        what = f"requests per min (RPM): Limit {key.rpm}, Used {used:g}, Requested 1"
    else:
        what = f"tokens per min (TPM): Limit {key.tpm}, Used {used:g}, Requested {request.tokens}"
    return WireError(
        429,
        f"Rate limit reached for the key {key.name!r} on {what}. Please try again in "
        f"{wait_s} s.",
        type=limit.value, code="rate_limit_exceeded", retry_after_s=wait_s,
    )  # fmt: skip


def make_headers(key: Key, usage: QuotaUsage) -> list[tuple[bytes, bytes]]:
    """The rate limit headers, named as OpenAI's are."""
    headers = []
    if key.rpm is not None:
        headers += _make_group(b"requests", key.rpm, usage.requests, usage.requests_reset_s)
    if key.tpm is not None:
        headers += _make_group(b"tokens", key.tpm, usage.tokens, usage.tokens_reset_s)
    return headers


def _make_group(name: bytes, limit: int, used: int, reset_s: float) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit-" + name, b"%d" % limit),
        (b"x-ratelimit-remaining-" + name, b"%d" % max(0, limit - used)),
        (b"x-ratelimit-reset-" + name, format_reset(reset_s).encode()),
    ]


def format_reset(seconds: float) -> str:
    """A duration in OpenAI's format: `120ms`, `6.5s`, `1m2s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.1f}s".replace(".0s", "s")
    return f"{int(seconds // 60)}m{round(seconds % 60)}s"


def _was_interrupted(call: Call) -> bool:
    """Whether a replica worked on a call that ended without token counts."""
    delivery = call.delivery
    return bool(delivery.sent_s) and (
        bool(delivery.first_byte_s) or call.outcome.status == CLIENT_CLOSED
    )
