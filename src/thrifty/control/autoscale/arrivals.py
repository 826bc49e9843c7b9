"""How many requests arrive, and how many will once a replica that is started now is ready."""

from __future__ import annotations

import math
from collections import deque

from thrifty.control.autoscale.settings import Settings

LEAST_COVERED_S = 2.0
"""A rate over less time is no rate."""
LEAST_BINS = 6
"""Fewer points give no trend."""
REMEMBERED_PIECES = 100.0
"""How many pieces of time the scatter of arrivals is averaged over: some minutes."""
UNSURE_PIECES = 5.0
"""Arrivals are taken to be Poisson's with the weight of so many pieces."""
MOST_SCATTER = 16.0
"""What one piece counts at most, so that a real burst is not taken to be usual from then on."""


class Arrivals:
    """The arrivals at one version. Times are on the policy's clock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bins: deque[tuple[float, float, float]] = deque()
        """The end, the length and the arrivals of each interval of the window."""
        self._peaks: deque[tuple[float, float]] = deque()
        """Rates that are larger than all later ones, with their times."""
        self._piece = self._piece_s = 0.0
        self._scatter, self._pieces = 1.0, UNSURE_PIECES

    def add(self, now_s: float, length_s: float, arrivals: float) -> None:
        """Note the arrivals of the last `length_s` seconds."""
        self._bins.append((now_s, length_s, arrivals))
        while self._bins and self._bins[0][0] <= now_s - self._settings.level_s:
            self._bins.popleft()
        self._note_clumps(length_s, arrivals)

    def note_peak(self, now_s: float, rate_per_s: float) -> float:
        """Note the rate that was decided on; returns the largest one of the window for shrinking."""
        peaks = self._peaks
        while peaks and peaks[-1][1] <= rate_per_s:
            peaks.pop()
        peaks.append((now_s, rate_per_s))
        while peaks[0][0] < now_s - self._settings.down_window_s:
            peaks.popleft()
        return peaks[0][1]

    def count(self) -> float:
        """How many have arrived within the window."""
        return sum(arrivals for _, _, arrivals in self._bins)

    def estimate(self, ahead_s: float) -> float:
        """The rate to be ready for: the largest of its level, a burst, and its trend in `ahead_s`."""
        covered = sum(length for _, length, _ in self._bins)
        total = self.count()
        if total <= 0:
            return 0.0
        level = total / max(covered, LEAST_COVERED_S)
        return max(level, self._find_burst(level), self._forecast(level, ahead_s))

    def _find_burst(self, level: float) -> float:
        """The rate of the last seconds, if it is no fluctuation of the level; else 0."""
        covered = total = 0.0
        for _, length, arrivals in reversed(self._bins):
            if covered >= self._settings.burst_s:
                break
            covered += length
            total += arrivals
        covered = max(covered, LEAST_COVERED_S)
        expected = level * covered
        usual = math.sqrt(expected * self._clumps)
        if total > expected + self._settings.burst_sigmas * usual + 1.0:
            return total / covered
        return 0.0

    def _note_clumps(self, length_s: float, arrivals: float) -> None:
        """Learn how much more arrivals scatter than Poisson's: their index of dispersion, over
        pieces as long as a burst, around the level. Clients that send several requests together
        would make a burst out of what is none.
        """
        self._piece_s += length_s
        self._piece += arrivals
        if self._piece_s < self._settings.burst_s:
            return
        covered = sum(length for _, length, _ in self._bins)
        expected = self.count() / covered * self._piece_s
        if expected > 0:
            scatter = min((self._piece - expected) ** 2 / expected, MOST_SCATTER)
            self._pieces = min(self._pieces + 1.0, REMEMBERED_PIECES)
            self._scatter += (scatter - self._scatter) / self._pieces
        self._piece_s = self._piece = 0.0

    @property
    def _clumps(self) -> float:
        """At least 1, which is Poisson's."""
        return max(1.0, self._scatter)

    def _forecast(self, level: float, ahead_s: float) -> float:
        """The rate on the line through the window's intervals, as far as its rise is certain."""
        bins, settings = self._bins, self._settings
        if len(bins) < LEAST_BINS:
            return 0.0
        weight = sum(length for _, length, _ in bins)
        middle = sum(length * (end - length / 2) for end, length, _ in bins) / weight
        spread = moment = misfit = 0.0
        for end, length, arrivals in bins:
            offset = end - length / 2 - middle
            spread += length * offset * offset
            moment += offset * (arrivals - level * length)
        if spread <= 0:
            return 0.0
        slope = moment / spread
        for end, length, arrivals in bins:
            expected = max(1e-9, (level + slope * (end - length / 2 - middle)) * length)
            misfit += (arrivals - expected) ** 2 / max(expected, level * length * 0.1)
        # Arrivals that come in clumps scatter more than Poisson's, and make a slope less certain.
        clumps = max(1.0, misfit / max(1, len(bins) - 2))
        certain = slope - settings.trend_sigmas * math.sqrt(level * clumps / spread)
        if certain <= 0:
            return 0.0
        ahead_s = min(ahead_s, settings.longest_forecast_s)
        now = bins[-1][0] - middle
        return min(level + certain * (now + ahead_s), level * settings.most_growth)
