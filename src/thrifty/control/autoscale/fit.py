"""How fast one replica of a version is, learned from the answers that gateways counted.

Two straight lines over the number of requests that a replica works on at once: the time to the first
token at the replica, and the time for each further token. Both are fitted by least squares in which
older answers weigh less. While all answers were given at about the same load their slope is not
known; a prior then says how much a replica slows down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from thrifty.control.autoscale.settings import Settings
from thrifty.db.demand import bucket_limit_s

QUANTILE = 0.95
MOST_RATIO = 3.0
"""A 95th percentile further above the mean comes from single stalls, which replicas do not cure."""
DEFAULT_RATIO = 1.5
"""Before a histogram says more."""
MIN_HISTOGRAM = 20.0


@dataclass(frozen=True)
class Line:
    """Seconds at a load of `c` requests: `base_s + slope_s * c`."""

    base_s: float
    slope_s: float

    def at(self, load: float) -> float:
        """Seconds at that load."""
        return self.base_s + self.slope_s * load


@dataclass
class LineFit:
    """Weighted sums for one line."""

    weight: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    @property
    def mean_s(self) -> float:
        """The weighted mean; 0 before any answer."""
        return self._y / self.weight if self.weight > 0 else 0.0

    def add(self, load: float, seconds: float, answers: float, kept: float) -> None:
        """Learn from `answers` whose mean was `seconds`; earlier ones keep the share `kept` of their
        weight.
        """
        self.weight = self.weight * kept + answers
        self._x = self._x * kept + answers * load
        self._y = self._y * kept + answers * seconds
        self._xx = self._xx * kept + answers * load * load
        self._xy = self._xy * kept + answers * load * seconds

    def solve(self, prior_slope: float, prior_weight: float) -> Line | None:
        """The line, with neither a base nor a slope below 0; None before any answer."""
        if self.weight <= 0:
            return None
        load, seconds = self._x / self.weight, self._y / self.weight
        spread = max(0.0, self._xx - self._x * load)
        together = self._xy - self._y * load
        expected = prior_slope * seconds / (1.0 + prior_slope * load)
        slope = (together + prior_weight * expected) / (spread + prior_weight)
        slope = max(0.0, min(slope, seconds / load if load > 0 else slope))
        return Line(seconds - slope * load, slope)


@dataclass
class Histogram:
    """Counts by bucket, in which older ones weigh less."""

    counts: list[float] = field(default_factory=list)

    def add(self, new: tuple[float, ...], kept: float) -> None:
        """Add counts."""
        if len(self.counts) != len(new):
            self.counts = [0.0] * len(new)
        self.counts = [old * kept + more for old, more in zip(self.counts, new, strict=True)]

    def quantile_s(self, share: float = QUANTILE) -> float | None:
        """The time that this share stays within; None where there are too few."""
        total = sum(self.counts)
        if total < MIN_HISTOGRAM:
            return None
        left = share * total
        for bucket, count in enumerate(self.counts):
            if count >= left and count > 0:
                low = bucket_limit_s(bucket - 1) if bucket else 0.0
                return low + (bucket_limit_s(bucket) - low) * left / count
            left -= count
        return bucket_limit_s(len(self.counts) - 1)


@dataclass(frozen=True)
class Speed:
    """How fast one replica is, as far as it is known."""

    hold: Line
    """How long a request of the present size stays at a replica."""
    begin: Line | None = None
    """The time to the first token at the replica."""
    token: Line | None = None
    """The time for each further token."""
    begin_ratio: float = DEFAULT_RATIO
    """The 95th percentile of the time to the first token over its mean."""
    token_ratio: float = DEFAULT_RATIO


class SpeedFit:
    """Learns the speed of one version's replicas."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._begin, self._token, self._hold = LineFit(), LineFit(), LineFit()
        self._begin_times, self._token_times = Histogram(), Histogram()
        self._tokens = self._answers = 0.0

    def learn(self, load: float, new: Answers) -> None:
        """Learn from the answers of a while, at `load` requests for each replica."""
        if new.answered <= 0:
            return
        kept = 0.5 ** (new.answered / self._settings.forget_answers)
        self._answers = self._answers * kept + new.answered
        self._tokens = self._tokens * kept + new.output_tokens
        # Per token, as answers differ in length much more than in speed.
        size = new.output_tokens or new.answered
        self._hold.add(load, new.held_s / size, new.answered, kept)
        if new.streamed > 0:
            self._begin.add(load, new.begin_s / new.streamed, new.streamed, kept)
            self._begin_times.add(new.begin_buckets, kept)
        if new.timed > 0:
            self._token.add(load, new.token_s / new.timed, new.timed, kept)
            self._token_times.add(new.token_buckets, kept)

    def solve(self) -> Speed | None:
        """The speed, or None before enough answers were seen."""
        settings = self._settings
        if self._answers < settings.least_answers:
            return None
        prior = settings.prior_slope, settings.prior_weight
        hold = self._hold.solve(*prior)
        assert hold is not None
        size = self._tokens / self._answers or 1.0
        hold = Line(hold.base_s * size, hold.slope_s * size)
        enough = settings.least_answers
        begin = self._begin.solve(*prior) if self._begin.weight >= enough else None
        token = self._token.solve(*prior) if self._token.weight >= enough else None
        return Speed(
            hold, begin, token,
            _find_ratio(self._begin_times, self._begin), _find_ratio(self._token_times, self._token),
        )  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What was answered in a while: the differences of two `Demand`s."""

    answered: float
    output_tokens: float
    held_s: float
    streamed: float
    begin_s: float
    timed: float
    token_s: float
    begin_buckets: tuple[float, ...]
    token_buckets: tuple[float, ...]


def _find_ratio(times: Histogram, fit: LineFit) -> float:
    p95_s, mean_s = times.quantile_s(), fit.mean_s
    if p95_s is None or not mean_s:
        return DEFAULT_RATIO
    return max(1.0, min(MOST_RATIO, p95_s / mean_s))
