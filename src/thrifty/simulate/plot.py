"""The course of a simulation as a PNG."""

from __future__ import annotations

from pathlib import Path

from thrifty.errors import SimulationError
from thrifty.simulate.panels import make_panels
from thrifty.simulate.run import Simulated


def check_plots() -> None:
    """Raise `SimulationError` if matplotlib is not installed, before anything is simulated."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise SimulationError("plots need matplotlib: pip install 'thrifty[plot]'") from None


def plot_simulation(found: Simulated, path: Path) -> None:
    """Draw requests, replicas, times to the first token and cost over time."""
    check_plots()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = make_panels(found)
    figure = Figure(figsize=(11, 2.7 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    colours = {name: f"C{index}" for index, name in enumerate(found.policies)}
    for axis, panel in zip(axes, panels, strict=True):
        for curve in panel.curves:
            x, y = [x for x, _ in curve.points], [y for _, y in curve.points]
            drawn = axis.step if panel.steps else axis.plot
            drawn(x, y, color=colours.get(curve.name, "#1f6f9f"), label=curve.name, linewidth=1.2)
        if panel.bound is not None:
            axis.axhline(panel.bound, color="#a3324e", linestyle="--", linewidth=1)
        axis.set_ylim(0, panel.y_end)
        axis.set_title(panel.title + (f" ({panel.unit})" if panel.unit else ""), fontsize=10)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, ncols=4, loc="upper left")
    axes[-1].set_xlabel("minutes")
    figure.suptitle(f"{found.setups[0].rates.name}, {Path(found.trace.path).name}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
