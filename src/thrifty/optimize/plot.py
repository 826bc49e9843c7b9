"""The plots of a search as a PNG."""

from __future__ import annotations

from pathlib import Path

from thrifty.compare.plot import check_plots
from thrifty.errors import EvaluationError
from thrifty.optimize.intervals import Interval
from thrifty.optimize.run import Optimized
from thrifty.optimize.scatter import make_scatters
from thrifty.optimize.standing import Status

_COLOURS = {Status.WINNER: "#2c7a4b", Status.BEYOND: "#a3324e", Status.UNCERTAIN: "#b4541a"}
_OTHER = "#1f6f9f"


def plot_search(found: Optimized, path: Path) -> None:
    """Draw the plots. Raises `EvaluationError` if there is nothing to draw."""
    check_plots()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scatters = make_scatters(found)
    if not scatters:
        raise EvaluationError("nothing to draw: no candidate was both judged and tried")
    figure = Figure(figsize=(6.0 * len(scatters), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(scatters), squeeze=False)[0]
    for axis, scatter in zip(axes, scatters, strict=True):
        for point in scatter.points:
            winner = point.status is Status.WINNER
            axis.errorbar(
                point.x.value, min(point.drop.value, scatter.y_end),
                xerr=_half(point.x, scatter.x_end), yerr=_half(point.drop, scatter.y_end),
                fmt="D" if winner else "o", markersize=8 if winner else 4, elinewidth=0.7,
                color=_COLOURS.get(point.status, _OTHER), zorder=3 if winner else 2,
                label=point.says if winner else None,
            )  # fmt: skip
        front = scatter.front
        axis.plot(
            [point.x.value for point in front], [point.drop.value for point in front],
            color="#2c7a4b", alpha=0.5, zorder=1,
        )  # fmt: skip
        axis.axhline(scatter.bound, color="#a3324e", linestyle="--", linewidth=1)
        axis.set_xlim(0, scatter.x_end)
        axis.set_ylim(0, scatter.y_end)
        axis.set_title(scatter.title)
        axis.set_xlabel(scatter.x_label)
        axis.set_ylabel("drop on the worst domain or of answers")
        axis.grid(alpha=0.3)
        if any(point.status is Status.WINNER for point in scatter.points):
            axis.legend(fontsize=8)
    figure.suptitle(
        f"{found.reference.label}, {found.load}; {found.machine.processor}", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _half(found: Interval, end: float) -> list[list[float]]:
    """The lengths of both halves of an error bar, cut at the end of the axis."""
    value = min(found.value, end)
    return [[max(0.0, value - found.low)], [max(0.0, min(found.high, end) - value)]]
