"""Speeds of replicas of one kind, learned from answered requests.

The time to the first token is modelled as a sum of four terms: a constant, a time per prompt token
to compute, a time per running request, and a time per request that waits for its own first token.
The last term captures a full replica: cached prompt tokens cost nothing to compute, yet their
request waits for a free slot. The coefficients are fitted online by recursive least squares with a
forgetting factor, so they follow the model, engine, machine and load. The time per generated token
is a moving average.
"""

from __future__ import annotations

from typing import NamedTuple

FORGET = 0.98
"""The weight of a sample halves every 34 samples."""
MIN_SAMPLES = 8
DEFAULT_TTFT = (0.02, 1 / 2000, 0.005, 0.0)
DEFAULT_DECODE_S = 1 / 400
DEFAULT_ANSWER_TOKENS = 128.0
TOKEN_SCALE = 1000.0
DECODE_WEIGHT = 0.05
MAX_UNCERTAINTY = 1e6
_N = range(4)


class WorkAhead(NamedTuple):
    """The work on a replica ahead of a new request."""

    prefill_tokens: float
    """Prompt tokens to compute, including its own."""
    running: int
    """Other requests that have not ended."""
    waiting: int
    """Other requests without a first token."""


class Rates:
    """Estimates for one kind of replica: a version on an engine on a device."""

    __slots__ = (
        "_p",
        "_theta",
        "decode_s",
        "fixed_s",
        "prefill_s",
        "running_s",
        "samples",
        "waiting_s",
    )

    def __init__(self) -> None:
        fixed, prefill, running, waiting = DEFAULT_TTFT
        self._theta = [fixed, prefill * TOKEN_SCALE, running, waiting]
        self._p = _start()
        self.samples = 0
        self.fixed_s, self.prefill_s, self.running_s, self.waiting_s = DEFAULT_TTFT
        self.decode_s = DEFAULT_DECODE_S
        """Seconds of a replica's time per generated token, at its usual concurrency."""

    def estimate_ttft_s(self, ahead: WorkAhead) -> float:
        """The expected time to the first token."""
        return (
            self.fixed_s
            + self.prefill_s * ahead.prefill_tokens
            + self.running_s * ahead.running
            + self.waiting_s * ahead.waiting
        )

    def learn_ttft(self, ahead: WorkAhead, ttft_s: float) -> None:
        """Learn from one measured time to the first token."""
        x = (1.0, ahead.prefill_tokens / TOKEN_SCALE, ahead.running, ahead.waiting)
        p, theta = self._p, self._theta
        u = [sum(row[i] * x[i] for i in _N) for row in p]
        weight = FORGET + sum(x[i] * u[i] for i in _N)
        error_s = ttft_s - sum(theta[i] * x[i] for i in _N)
        for i in _N:
            gain = u[i] / weight
            theta[i] += gain * error_s
            row = p[i]
            for j in _N:
                row[j] = (row[j] - gain * u[j]) / FORGET
        if sum(p[i][i] for i in _N) > MAX_UNCERTAINTY:
            # Without new information, forgetting would let the covariance grow without bound.
            self._p = _start()
        self.samples += 1
        if self.samples >= MIN_SAMPLES:
            self.fixed_s = max(0.0, theta[0])
            self.prefill_s = max(0.0, theta[1] / TOKEN_SCALE)
            self.running_s = max(0.0, theta[2])
            self.waiting_s = max(0.0, theta[3])

    def learn_decode(self, tokens: int, seconds: float, running: float) -> None:
        """Learn from one answer: `tokens` in `seconds`, at `running` concurrent requests, itself
        included.
        """
        if tokens > 1 and seconds > 0:
            sample_s = seconds / (tokens - 1) / max(1.0, running)
            self.decode_s += DECODE_WEIGHT * (sample_s - self.decode_s)


def _start() -> list[list[float]]:
    return [[1.0 if i == j else 0.0 for j in _N] for i in _N]
