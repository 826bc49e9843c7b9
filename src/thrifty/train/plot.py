"""A plot of a training: the loss of every step, and the held-out loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.errors import TrainingError


def plot_losses(figures: dict[str, Any], path: Path) -> None:
    """Draw the figures of a training to a PNG. Raises `TrainingError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise TrainingError("plots need matplotlib: pip install 'thrifty[plot]'") from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    losses = figures["losses"]
    axes.plot(range(1, len(losses) + 1), losses, color="0.75", linewidth=1, label="training loss")
    steps, values = zip(*figures["held_out"], strict=True)
    axes.plot(steps, values, marker="o", markersize=3, label="held-out loss")
    axes.axvline(figures["best_step"], color="0.4", linestyle=":", linewidth=1)
    axes.set(xlabel="step", ylabel=figures["unit"], ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
