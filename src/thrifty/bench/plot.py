"""Plots of a load test: throughput and latencies at each level of load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thrifty.bench.summary import Distribution, LevelSummary
from thrifty.errors import BenchError


def plot_levels(levels: Sequence[LevelSummary], title: str, path: Path) -> None:
    """Draw `levels` to a PNG. Raises `BenchError` if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise BenchError("plots need matplotlib: pip install 'thrifty[plot]'") from None
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    throughput, first, later = figure.subplots(1, 3)
    names = [level.level for level in levels]
    places = list(range(len(levels)))

    values = [level.output_tokens_per_s.value for level in levels]
    errors = [
        [v - level.output_tokens_per_s.low for v, level in zip(values, levels, strict=True)],
        [level.output_tokens_per_s.high - v for v, level in zip(values, levels, strict=True)],
    ]
    throughput.bar(places, values, yerr=errors, capsize=4, color="#2a6f97")
    throughput.set_title("Output tokens per second")
    for axis, name, key in (
        (first, "Time to first token (ms)", "ttft_ms"),
        (later, "Time per output token (ms)", "tpot_ms"),
    ):
        for percentile, style in (("p50", "o-"), ("p95", "s--"), ("p99", "^:")):
            heights = [_read(getattr(level, key), percentile) for level in levels]
            axis.plot(places, heights, style, label=percentile)
        axis.set_title(name)
        axis.set_ylim(bottom=0)
        axis.legend()
    for axis in (throughput, first, later):
        axis.set_xticks(places, names)
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _read(distribution: Distribution | None, percentile: str) -> float:
    return float("nan") if distribution is None else float(getattr(distribution, percentile))
