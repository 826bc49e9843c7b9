"""The points and axis ranges of a comparison's plots, without drawing them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from thrifty.compare.table import Comparison, Row
from thrifty.types import Family

LEAST_DIVERGENCE = 1e-5
"""The lower limit of values on the logarithmic axis."""


@dataclass(frozen=True)
class Point:
    """One model in a plot."""

    name: str
    x: float
    y: float
    error: float


@dataclass(frozen=True)
class Scatter:
    """One plot: the models' distance from the reference, on a log scale, against size or speed."""

    title: str
    x_label: str
    y_label: str
    points: list[Point]

    @property
    def x_end(self) -> float:
        """The end of the x axis, which starts at 0: a round number beyond the last point."""
        return round_up(max(point.x for point in self.points) * 1.15)

    @property
    def y_range(self) -> tuple[int, float]:
        """The exponents of ten at the ends of the y axis, with room for a name above the points."""
        values = [math.log10(point.y) for point in self.points]
        low = math.floor(min(values) - 0.15)
        return low, max(max(values) + 0.35, low + 1.3)


def make_scatters(comparison: Comparison) -> list[Scatter]:
    """Quality against size and against speed; a plot without points is left out."""
    worst = " on the worst domain" if len(comparison.domains) > 1 else ""
    if comparison.family is Family.ENCODER:
        y_label = f"1 - rank correlation of similarities{worst}"
        speeds, level, speed_label = "texts_per_s", "32", "texts per second, 32 per request"
    else:
        y_label = f"KL divergence{worst}, nats per token"
        speeds, level, speed_label = "tokens_per_s", "8", "tokens per second, 8 streams"
    by_size = [_point(row, (row.size_bytes or 0) / 1e6) for row in comparison.rows]
    by_speed = [
        _point(row, (row.speed or {}).get(speeds, {}).get(level, 0.0)) for row in comparison.rows
    ]
    plots = [
        Scatter("Quality against size", "size, MB", y_label, [p for p in by_size if p]),
        Scatter("Quality against speed", speed_label, y_label, [p for p in by_speed if p]),
    ]
    return [plot for plot in plots if plot.points]


def _point(row: Row, x: float) -> Point | None:
    if row.quality is None:
        return None
    kl, ranks = row.quality.get("kl_divergence"), row.quality.get("rank_correlation")
    if kl is not None:
        distance, error = kl["mean"], kl["stderr"]
    else:
        assert ranks is not None, "a domain without them is never the worst"
        distance, error = 1 - ranks["spearman"], ranks["stderr"]
    return Point(row.name, x, max(distance, LEAST_DIVERGENCE), error) if x else None


def round_up(value: float) -> float:
    """Round up to 1, 2, 2.5 or 5 times a power of ten, or a small multiple of it."""
    step = round_step(value / 5)
    return math.ceil(value / step) * step


def round_step(value: float) -> float:
    """A round distance between ticks, at least `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value)
