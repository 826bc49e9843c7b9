"""How fast replicas of one kind are, learned from the requests that they answered.

The time to a first token is taken as a sum: something fixed, so much for each prompt token that has
to be computed before it, and so much for each request that is running beside it. The three are
fitted online by least squares that forget, so that they follow a model on its own engine, machine
and load. The seconds a generated token takes are a running mean.
"""

from __future__ import annotations

FORGET = 0.98
"""The weight of a sample halves every 34 samples."""
MIN_SAMPLES = 8
DEFAULT_TTFT = (0.02, 1 / 2000, 0.005)
DEFAULT_DECODE_S = 1 / 400
DEFAULT_ANSWER_TOKENS = 128.0
TOKEN_SCALE = 1000.0
DECODE_WEIGHT = 0.05
MAX_UNCERTAINTY = 1e6


class Rates:
    """Estimates for one kind of replica: a version on an engine on a device."""

    __slots__ = ("_p", "_theta", "decode_s", "fixed_s", "prefill_s", "running_s", "samples")

    def __init__(self) -> None:
        self._theta = [DEFAULT_TTFT[0], DEFAULT_TTFT[1] * TOKEN_SCALE, DEFAULT_TTFT[2]]
        self._p = [[1.0 if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.samples = 0
        self.fixed_s, self.prefill_s, self.running_s = DEFAULT_TTFT
        self.decode_s = DEFAULT_DECODE_S
        """Seconds of a replica's time for one generated token, with whatever runs beside it."""

    def estimate_ttft_s(self, prefill_tokens: float, running: float) -> float:
        """The time to a first token behind so many prompt tokens (its own included) and beside so
        many running requests.
        """
        return self.fixed_s + self.prefill_s * prefill_tokens + self.running_s * running

    def estimate_work_s(self, prefill_tokens: float, decode_tokens: float) -> float:
        """How long outstanding work will keep a replica busy."""
        return self.prefill_s * prefill_tokens + self.decode_s * decode_tokens

    def learn_ttft(self, prefill_tokens: float, running: float, ttft_s: float) -> None:
        """Take in one measured time to a first token."""
        x0, x1, x2 = 1.0, prefill_tokens / TOKEN_SCALE, running
        (a, b, c), (d, e, f), (g, h, i) = p = self._p
        u0, u1, u2 = a * x0 + b * x1 + c * x2, d * x0 + e * x1 + f * x2, g * x0 + h * x1 + i * x2
        weight = FORGET + x0 * u0 + x1 * u1 + x2 * u2
        k0, k1, k2 = u0 / weight, u1 / weight, u2 / weight
        theta = self._theta
        error_s = ttft_s - (theta[0] * x0 + theta[1] * x1 + theta[2] * x2)
        theta[0] += k0 * error_s
        theta[1] += k1 * error_s
        theta[2] += k2 * error_s
        for row, k in zip(p, (k0, k1, k2), strict=True):
            row[0] = (row[0] - k * u0) / FORGET
            row[1] = (row[1] - k * u1) / FORGET
            row[2] = (row[2] - k * u2) / FORGET
        if p[0][0] + p[1][1] + p[2][2] > MAX_UNCERTAINTY:
            # Nothing new for long: without a bound, forgetting would blow the estimate up.
            self._p = [[1.0 if i == j else 0.0 for j in range(3)] for i in range(3)]
        self.samples += 1
        if self.samples >= MIN_SAMPLES:
            self.fixed_s = max(0.0, theta[0])
            self.prefill_s = max(0.0, theta[1] / TOKEN_SCALE)
            self.running_s = max(0.0, theta[2])

    def learn_decode(self, tokens: int, seconds: float, running: float) -> None:
        """Take in one answer: `tokens` in `seconds`, beside so many running requests (itself
        included).
        """
        if tokens > 1 and seconds > 0:
            sample_s = seconds / (tokens - 1) / max(1.0, running)
            self.decode_s += DECODE_WEIGHT * (sample_s - self.decode_s)
