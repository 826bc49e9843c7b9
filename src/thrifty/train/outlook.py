"""What a training tells of itself: where it is, and where it will end."""

from __future__ import annotations

from thrifty.train.forecast import forecast
from thrifty.train.settings import LoopSettings
from thrifty.train.state import Limits, State
from thrifty.types import Progress


def find_points(state: State, name: str) -> list[tuple[int, float]]:
    """A domain's curve. What few examples told is scaled by what all of them told first."""
    curve, few = state.curves[name], state.few.get(name, [])
    if not few or few[0][1] <= 0:
        return curve
    scale = curve[0][1] / few[0][1]
    return sorted([*curve, *((tokens, scale * value) for tokens, value in few[1:])])


def tell_forecast(state: State, tokens: float, spent_s: float) -> str:
    """Predict where each domain is after `tokens`, and note it; returns what people are told. Empty
    if there is no curve yet.
    """
    points = {name: find_points(state, name) for name in state.curves}
    found = {
        name: (curve[-1][1], known)
        for name, curve in points.items()
        if (known := forecast(curve, tokens)) is not None
    }
    if not found:
        return ""
    ends = {name: [round(value, 5) for value in known] for name, (_, known) in found.items()}
    state.forecasts.append({"seconds": round(spent_s, 1), "tokens": round(tokens), "ends": ends})
    parts = [
        f"{name or 'held out'} {now:.4f} -> {value:.4f} +- {error:.4f}"
        for name, (now, (value, error)) in found.items()
    ]
    return f"after {spent_s / 60:.1f} minutes, now -> at the end: {'; '.join(parts)}"


def describe_progress(
    name: str, loss: float, state: State, training: LoopSettings, limits: Limits, now_s: float
) -> Progress:
    """How far a training is after `now_s` seconds, and the loss of its last step."""
    what = f"loss {loss:.3f}, held out {state.best:.4f}"
    if limits.budget_s is None and training.steps is not None:
        return Progress(name, state.step, training.steps, f"steps, {what}")
    if limits.budget_s is None:
        return Progress(name, state.tokens, training.tokens or 0, f"tokens, {what}")
    spent = round((limits.spent_s + now_s) / 60, 1)
    unit = f"minutes, {state.tokens} tokens, {what}"
    return Progress(name, spent, round(limits.budget_s / 60, 2), unit)
