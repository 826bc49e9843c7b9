"""The plots of a comparison as a PNG."""

from __future__ import annotations

from pathlib import Path

from thrifty.compare.scatter import make_scatters
from thrifty.compare.table import Comparison
from thrifty.errors import EvaluationError


def check_plots() -> None:
    """Raise `EvaluationError` if matplotlib is not installed, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise EvaluationError("plots need matplotlib: pip install 'thrifty[plot]'") from None


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Draw the plots of `comparison`. Raises `EvaluationError` if there is nothing to draw."""
    check_plots()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scatters = make_scatters(comparison)
    if not scatters:
        raise EvaluationError(
            "nothing to draw: no model has both a quality and a size or speed; measure them "
            "(without --no-measure)"
        )
    figure = Figure(figsize=(6.4 * len(scatters), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {row.name: f"C{index}" for index, row in enumerate(comparison.rows)}
    for axis, scatter in zip(figure.subplots(1, len(scatters), squeeze=False)[0], scatters,
                             strict=True):  # fmt: skip
        for point in scatter.points:
            axis.errorbar(
                point.x, point.y, yerr=min(point.error, point.y * 0.99), fmt="o", capsize=3,
                markersize=7, color=colours[point.name], label=point.name,
            )  # fmt: skip
        axis.set_yscale("log")
        low, high = scatter.y_range
        axis.set_ylim(10.0**low, 10.0**high)
        axis.set_xlim(0, scatter.x_end)
        axis.set_title(scatter.title)
        axis.set_xlabel(scatter.x_label)
        axis.set_ylabel(scatter.y_label)
        axis.grid(alpha=0.3)
    # One legend for all plots: names beside points that are close together would overlap.
    named = {
        name: handle
        for axis in figure.axes
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=min(3, len(named)), fontsize=9
    )  # fmt: skip
    text = comparison.text
    figure.suptitle(
        f"Relative to {comparison.reference}, on {text['name']}; {comparison.speed['processor']}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
