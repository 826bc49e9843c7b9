"""What latencies to expect of a number of replicas: Little's law and a queue for their slots.

Requests arrive at the rate `r` and share `n` replicas evenly. A replica that works on `c` requests
keeps each for `H(c)` seconds, a straight line, so that Little's law, `c = r/n * H(c)`, gives `c`. With
`s` slots each, a replica serves at most `s / H(s)` requests a second, and `rho = r / (n s / H(s))` is the
utilisation. Requests that find all `N = n s` slots taken wait in the gateway: with probability
`1 / (1 + b Phi(b)/phi(b))`, `b = (1 - rho) sqrt(N)` (Halfin and Whitt 1981, who approximate Erlang's C
formula at any size in constant time), and then for an exponential time with the mean
`H(s) / (N (1 - rho))`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from thrifty.control.autoscale.fit import Speed
from thrifty.control.autoscale.types import Prediction

LATE = 0.05
"""The share of requests that may be later than a 95th percentile."""
LEAST_RATE = 1e-6
"""Requests a second: no replica is slower, so that nothing is divided by zero."""
_SQRT_2 = math.sqrt(2.0)
_SQRT_2_PI = math.sqrt(2.0 * math.pi)


@dataclass(frozen=True)
class Fleet:
    """Replicas of one kind."""

    speed: Speed
    slots: int | None
    """None: each takes all that it is sent."""
    concurrency: int
    """Where `slots` is None: how many requests each should have at once at most."""

    @property
    def places(self) -> int:
        """How many requests a replica should have at most."""
        return self.slots or self.concurrency

    @property
    def rate_per_s(self) -> float:
        """How many requests a second one replica answers at most."""
        return max(LEAST_RATE, self.places / max(1e-9, self.speed.hold.at(self.places)))

    def predict(self, replicas: int, rate_per_s: float) -> Prediction:
        """What to expect of so many replicas at that rate of arrivals."""
        if replicas <= 0:
            infinite = math.inf if rate_per_s > 0 else 0.0
            return Prediction(0, infinite)
        speed, hold = self.speed, self.speed.hold
        share = rate_per_s / replicas
        utilisation = share / self.rate_per_s
        slowing = share * hold.slope_s
        load = share * hold.base_s / (1.0 - slowing) if slowing < 1.0 else math.inf
        load = min(load, float(self.places))
        wait_s = 0.0 if self.slots is None else self._wait_p95_s(replicas, utilisation)
        ttft_s = tpot_s = None
        if speed.begin is not None:
            ttft_s = speed.begin.at(load) * speed.begin_ratio + wait_s
        if speed.token is not None:
            tpot_s = speed.token.at(load) * speed.token_ratio
        return Prediction(replicas, utilisation, ttft_s, tpot_s, load)

    def best(self) -> Prediction:
        """What one replica gives to a request that has it for itself."""
        speed = self.speed
        ttft_s = speed.begin.base_s * speed.begin_ratio if speed.begin is not None else None
        tpot_s = speed.token.base_s * speed.token_ratio if speed.token is not None else None
        return Prediction(1, 0.0, ttft_s, tpot_s)

    def _wait_p95_s(self, replicas: int, utilisation: float) -> float:
        if utilisation >= 1.0:
            return math.inf
        slots = replicas * self.places
        waits = chance_of_waiting(slots, utilisation)
        if waits <= LATE:
            return 0.0
        hold_s = self.speed.hold.at(self.places)
        return math.log(waits / LATE) * hold_s / (slots * (1.0 - utilisation))


def chance_of_waiting(slots: float, utilisation: float) -> float:
    """The share of requests that find all slots taken, for a utilisation below 1."""
    beta = (1.0 - utilisation) * math.sqrt(slots)
    below = 0.5 * (1.0 + math.erf(beta / _SQRT_2))
    density = math.exp(-0.5 * beta * beta) / _SQRT_2_PI
    if density <= 0.0:
        return 0.0
    return 1.0 / (1.0 + beta * below / density)
