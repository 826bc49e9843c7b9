"""The constants of the policy, each with its reason. docs/autoscaling.md shows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The defaults are for everybody; simulations compare others."""

    level_s: float = 60.0
    """The window over which the rate of arrivals is averaged, and its trend taken."""
    burst_s: float = 4.0
    """The window in which a burst shows."""
    burst_sigmas: float = 3.0
    """A burst counts if arrivals that scatter as they usually do would hardly ever give as many. With
    a look each second, chance alone exceeds three standard deviations several times an hour: that
    costs some replicas for a while. With four, bursts were followed so late that one request in a
    hundred more missed its objective (`benchmarks/autoscaling.py`)."""
    trend_sigmas: float = 2.0
    """A trend is followed as far as it is certain: its slope less so many standard errors."""
    longest_forecast_s: float = 120.0
    """No trend is followed further ahead, however long a start takes."""
    most_growth: float = 2.0
    """A trend forecasts at most this multiple of the present rate."""
    reaction_s: float = 2.0
    """From a decision until a replica begins to start."""

    down_window_s: float = 120.0
    """The number shrinks to what the busiest moment of this window needs."""
    down_margin: float = 0.8
    """It shrinks only if the smaller number is predicted to stay within this share of the
    objective."""
    down_utilisation: float = 0.8
    """It shrinks only if the smaller number would be used at most so far: rho N/(N-1)."""
    down_step_s: float = 30.0
    """At most once in so long the number shrinks, and at most by half, so that what was predicted can
    be seen before it shrinks further."""
    turn_s: float = 1200.0
    """After a turn from down to up, the number does not shrink for so long. As a fall can be followed
    by a rise at any moment, this alone bounds changes of direction to two in so long a time."""

    most_utilisation: float = 0.85
    """Beyond this a queue grows with every fluctuation: waiting grows as rho/(1 - rho). With many
    slots fluctuations even out, and `1 - 1/sqrt(slots)` is allowed (square-root staffing)..."""
    highest_utilisation: float = 0.95
    """... up to here: what was learned is not exact."""
    plain_utilisation: float = 0.75
    """The same for versions without an objective, whose requests should hardly wait."""
    clear_backlog_s: float = 10.0
    """A backlog should be gone after so long, or after the objective's time, if that is longer."""

    least_answers: float = 8.0
    """Before so many answers, a replica's speed is not known and slots alone decide."""
    forget_answers: float = 400.0
    """What is learned of speeds forgets: so many later answers halve an answer's weight."""
    prior_slope: float = 0.25
    """Before different loads were seen, by which share of its unloaded time each further request is
    taken to slow a replica down: 8 at once then give 2.7 times the tokens of one, as on processors."""
    prior_weight: float = 4.0
    """How many answers, at loads that differ by one request, that assumption weighs."""
    unreachable_margin: float = 1.25
    """Where one replica without any load misses the objective, that latency times this is held
    instead: more replicas could not give less."""

    least_gain: float = 0.1
    """Twice the replicas have to bring a latency nearer to its objective by this share of it, or they
    are not started: where a latency comes from prompts and not from load, no number is enough, and
    what is learned scatters by more than this."""

    longest_step_s: float = 30.0
    """A step that comes later than this after the last one, or before it, means that the clock jumped
    or the process slept: figures of that time are not used."""
