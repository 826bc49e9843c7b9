"""The plots of a comparison as a PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.compare.scatter import make_scatters
from thrifty.compare.table import Comparison, Row
from thrifty.errors import EvaluationError
from thrifty.evaluate.statistics import Z_95
from thrifty.types import Family

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    drawn = [row for row in comparison.rows if len(row.domains) > 1]
    count = len(scatters) + bool(drawn)
    figure = Figure(figsize=(6.4 * count, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    colours = {row.name: f"C{index}" for index, row in enumerate(comparison.rows)}
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, scatter in zip(axes, scatters, strict=False):
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
    if drawn:
        _draw_domains(axes[-1], comparison, drawn, colours)
    # One legend for all plots: names beside points that are close together would overlap.
    named = {
        name: handle
        for axis in figure.axes
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=min(3, len(named)), fontsize=9
    )  # fmt: skip
    names = ", ".join(domain["name"] for domain in comparison.domains)
    figure.suptitle(
        f"Relative to {comparison.reference}, on {names}; {comparison.speed['processor']}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def _draw_domains(
    axis: Axes, comparison: Comparison, rows: list[Row], colours: dict[str, str]
) -> None:
    """Each model's perplexity ratio, or rank correlation, on each domain, with its 95% interval."""
    names = [domain["name"] for domain in comparison.domains]
    for index, row in enumerate(rows):
        shift = (index - (len(rows) - 1) / 2) * 0.6 / len(rows)
        for at, name in enumerate(names):
            found = row.domains.get(name)
            if found is not None:
                value, stderr = _find_quality(found)
                axis.errorbar(
                    at + shift, value, yerr=Z_95 * stderr, capsize=3,
                    fmt="D" if name == row.worst else "o", color=colours[row.name],
                )  # fmt: skip
    axis.set_xticks(range(len(names)), names)
    axis.set_title("Quality by domain")
    axis.set_xlabel("domain (a diamond: the model's worst)")
    encoder = comparison.family is Family.ENCODER
    axis.set_ylabel(
        "rank correlation of similarities" if encoder else "perplexity, times the reference's"
    )
    axis.grid(alpha=0.3)


def _find_quality(found: dict[str, Any]) -> tuple[float, float]:
    """What is drawn of one domain, and its standard error."""
    if "perplexity_ratio" in found:
        return found["perplexity_ratio"], found["perplexity_ratio_stderr"]
    ranks = found["rank_correlation"] or {"spearman": math.nan, "stderr": 0.0}
    return ranks["spearman"], ranks["stderr"]
