"""Usage counts of keys in this process: plain code with the time passed in.

Requests and tokens are counted over the last minute in slots of `SLOT_S` seconds. A key thus never
exceeds its limit in any 60 seconds; a token bucket would allow twice the limit in the first minute.
A slot counts until it lies entirely outside the window, so limits recover up to `SLOT_S` late.

Tokens and spend are reserved by an estimate when a request begins and corrected when it ends. With
nothing else running, a reservation never exceeds what is left: a request whose estimate is above
the whole limit passes alone and then counts with its actual usage.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from thrifty.db.keys import KeyLimits

WINDOW_S = 60
SLOT_S = 2
SLOTS = WINDOW_S // SLOT_S


class Limit(StrEnum):
    """The limits of a key."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    BUDGET_DAY = "budget_day"
    BUDGET_MONTH = "budget_month"


@dataclass(frozen=True, slots=True)
class QuotaRequest:
    """Estimated usage of a request, and the key's spend so far according to the database."""

    tokens: int
    cost: float
    spent_day: float = 0.0
    spent_month: float = 0.0


@dataclass(slots=True)
class QuotaUsage:
    """A key's usage in the last minute, for response headers. Times are seconds from now."""

    requests: int = 0
    tokens: int = 0
    requests_reset_s: float = 0.0
    tokens_reset_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that was exceeded, its usage, and when to retry (None: when the day or month
    ends).
    """

    limit: Limit
    used: float
    retry_after_s: float | None
    usage: QuotaUsage | None = None
    """The usage of the last minute, if known."""


@dataclass(slots=True)
class Grant:
    """An admitted request with its reservations."""

    number: int
    slot: int
    tokens: int
    cost: float
    usage: QuotaUsage


class MinuteWindow:
    """A sum over the last minute."""

    __slots__ = ("_slots", "total")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        """Pairs of slot number and amount, oldest first."""
        self.total = 0

    def trim(self, slot: int) -> None:
        """Drop slots outside the minute that ends with `slot`."""
        slots = self._slots
        while slots and slots[0][0] < slot - SLOTS:
            self.total -= slots.popleft()[1]

    def add(self, slot: int, amount: int) -> None:
        """Add `amount`, which may be negative, to `slot`. Slots come in order, except that a
        correction may name one that still counts.
        """
        slots = self._slots
        self.total += amount
        if not slots or slots[-1][0] < slot:
            slots.append([slot, amount])
            return
        for pair in reversed(slots):
            if pair[0] <= slot:
                pair[1] += amount
                return
        slots[0][1] += amount

    def covers(self, slot: int, now_slot: int) -> bool:
        """Whether `slot` still counts."""
        return slot >= now_slot - SLOTS

    def wait_s(self, excess: int, now_s: float) -> float:
        """Seconds until at least `excess` has left the window."""
        freed = 0
        for slot, amount in self._slots:
            freed += amount
            if freed >= excess:
                return max(0.0, (slot + SLOTS + 1) * SLOT_S - now_s)
        return float(WINDOW_S)

    def reset_s(self, now_s: float) -> float:
        """Seconds until the window is empty."""
        if not self.total or not self._slots:
            return 0.0
        return max(0.0, (self._slots[-1][0] + SLOTS + 1) * SLOT_S - now_s)


class KeyCounts:
    """The counts of one key."""

    __slots__ = ("_numbers", "_reserved", "requests", "running", "tokens", "used_s")

    def __init__(self) -> None:
        self.requests = MinuteWindow()
        self.tokens = MinuteWindow()
        self.running: set[int] = set()
        self._reserved = 0.0
        self._numbers = 0
        self.used_s = 0.0

    def take(self, limits: KeyLimits, request: QuotaRequest, now_s: float) -> Grant | Refusal:
        """Count a request and reserve its estimated usage, or return a refusal and count nothing.

        `now_s` is a reading of any monotonic clock.
        """
        refusal = self._find_refusal(limits, request, now_s)
        return refusal if refusal is not None else self.count(limits, request, now_s)

    def count(self, limits: KeyLimits, request: QuotaRequest, now_s: float) -> Grant:
        """Count a request without checking limits."""
        slot = int(now_s // SLOT_S)
        self.used_s = now_s
        self.requests.trim(slot)
        self.tokens.trim(slot)
        tokens = request.tokens if limits.tpm is None else min(request.tokens, limits.tpm)
        cost = bound_cost(limits, request)
        self.requests.add(slot, 1)
        self.tokens.add(slot, tokens)
        self._numbers += 1
        self.running.add(self._numbers)
        self._reserved += cost
        return Grant(self._numbers, slot, tokens, cost, self.usage(now_s))

    def settle(self, grant: Grant, tokens: int, now_s: float) -> None:
        """Replace a request's reservation by its actual usage."""
        if grant.number not in self.running:
            return
        self.running.discard(grant.number)
        self._reserved = self._reserved - grant.cost if self.running else 0.0
        slot = int(now_s // SLOT_S)
        self.tokens.trim(slot)
        change = tokens - grant.tokens
        if self.tokens.covers(grant.slot, slot):
            self.tokens.add(grant.slot, change)
        elif tokens > grant.tokens:
            # The usage beyond the reservation is recent.
            self.tokens.add(slot, change)

    def usage(self, now_s: float) -> QuotaUsage:
        """The usage of the last minute."""
        return QuotaUsage(
            self.requests.total,
            self.tokens.total,
            self.requests.reset_s(now_s),
            self.tokens.reset_s(now_s),
        )

    def _find_refusal(
        self, limits: KeyLimits, request: QuotaRequest, now_s: float
    ) -> Refusal | None:
        slot = int(now_s // SLOT_S)
        self.requests.trim(slot)
        self.tokens.trim(slot)
        if limits.concurrency is not None and len(self.running) >= limits.concurrency:
            return Refusal(Limit.CONCURRENCY, len(self.running), 1.0)
        if limits.rpm is not None and self.requests.total >= limits.rpm:
            wait_s = self.requests.wait_s(self.requests.total - limits.rpm + 1, now_s)
            return Refusal(Limit.REQUESTS, self.requests.total, wait_s)
        if limits.tpm is not None:
            excess = self.tokens.total + min(request.tokens, limits.tpm) - limits.tpm
            if excess > 0:
                wait_s = self.tokens.wait_s(excess, now_s)
                return Refusal(Limit.TOKENS, self.tokens.total, wait_s)
        return find_exceeded_budget(limits, request, self._reserved)


def bound_cost(limits: KeyLimits, request: QuotaRequest) -> float:
    """The amount reserved from budgets: the estimate, but never more than what is left."""
    cost = request.cost
    if limits.budget_day is not None:
        cost = min(cost, limits.budget_day - request.spent_day)
    if limits.budget_month is not None:
        cost = min(cost, limits.budget_month - request.spent_month)
    return max(0.0, cost)


def find_exceeded_budget(
    limits: KeyLimits, request: QuotaRequest, reserved: float
) -> Refusal | None:
    """A refusal if a budget has no room for the request beside what is already `reserved`."""
    cost = bound_cost(limits, request)
    for limit, budget, spent in (
        (Limit.BUDGET_DAY, limits.budget_day, request.spent_day),
        (Limit.BUDGET_MONTH, limits.budget_month, request.spent_month),
    ):
        if budget is None:
            continue
        if spent >= budget:
            return Refusal(limit, spent, None)
        # The tolerance allows for rounding in sums of fractions.
        if reserved and spent + reserved + cost > budget * (1 + 1e-9):
            return Refusal(limit, spent + reserved, 1.0)
    return None


class ProcessCounts:
    """The counts of all limited keys, by key id."""

    def __init__(self) -> None:
        self._keys: dict[str, KeyCounts] = {}

    def of(self, key_id: str) -> KeyCounts:
        """The counts of one key."""
        counts = self._keys.get(key_id)
        if counts is None:
            counts = self._keys[key_id] = KeyCounts()
        return counts

    def prune(self, now_s: float) -> None:
        """Drop keys that have been unused for two minutes."""
        old_s = now_s - 2 * WINDOW_S
        for key_id in [k for k, c in self._keys.items() if c.used_s < old_s and not c.running]:
            del self._keys[key_id]
