"""`thrifty distill`: a student learns what a teacher says."""

from __future__ import annotations

from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.show import err, print_json, print_line, show_progress
from thrifty.cli.texts import find_named
from thrifty.compress.distill.answers import RemoteTeacher
from thrifty.compress.distill.distill import DistillationRequest, distill_model
from thrifty.compress.distill.settings import Training
from thrifty.evaluate.suite import find_data
from thrifty.home import find_home


def run_distill(
    student: str,
    teacher: str | RemoteTeacher,
    *,
    text: str,
    held_out: str | None,
    out: str,
    training: Training,
    live: bool,
    backend: str,
    processes: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Distil a student."""
    home = find_home()
    store = Store(home.models)
    with show_progress() as on_progress:
        learned = find_data(text, home.data, store, on_progress).path
        judged = find_named(held_out, home, store, on_progress)
        request = DistillationRequest(
            student, teacher, learned, out, training, judged, live=live, backend=backend,
            processes=processes,
        )  # fmt: skip
        version, artifact = distill_model(store, home, request, on_progress)
    figures = version.lineage.figures
    if plot is not None:
        _plot(figures, plot)
    if as_json:
        print_json({"name": version.label, "bytes": artifact.size_bytes, "figures": figures})
        return
    err.print(
        f"{figures['unit']} on what is held out: {figures['before']:.4f} before, "
        f"{figures['after']:.4f} after {figures['best_step']} of {figures['steps']} steps "
        f"({figures['tokens']:,} tokens)"
    )
    print_line(version.label)


def _plot(figures: dict[str, object], path: Path) -> None:
    from thrifty.compress.distill.plot import plot_losses

    plot_losses(figures, path)
    err.print(f"the losses are drawn in {path}")
