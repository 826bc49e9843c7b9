"""`thrifty distill`: a student learns what a teacher says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.show import err, print_json, print_line, print_table, show_progress, tell
from thrifty.cli.texts import find_named
from thrifty.compress.distill.answers import RemoteTeacher
from thrifty.compress.distill.distill import DistillationRequest, distill_model
from thrifty.compress.distill.settings import Training
from thrifty.compress.mix import choose_text, find_mix
from thrifty.compress.overlap import check_apart
from thrifty.engines.machine import detect_machine
from thrifty.home import find_home
from thrifty.own_replica import make_server
from thrifty.types import Family


def run_distill(
    student: str,
    teacher: str | RemoteTeacher,
    *,
    text: Sequence[str],
    held_out: str | None,
    out: str,
    training: Training,
    live: bool,
    backend: str,
    processes: int,
    resume: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Distil a student."""
    home = find_home()
    store = Store(home.models)
    with show_progress() as on_progress:
        model = fetch_model(store, student, on_progress=on_progress)
        named = text or choose_text(store, model[1])
        learned = find_mix(named, home.data, store, on_progress)
        judged = find_named(held_out, home, store, on_progress)
        if model[1].description.family is Family.DECODER:
            paths = [] if judged is None else [judged]
            learned = check_apart(learned, paths, home, store, tell, on_progress)
        request = DistillationRequest(
            student, teacher, learned, out, training, judged, live=live, backend=backend,
            processes=processes, resume=resume, serve=make_server(store, home, detect_machine()),
        )  # fmt: skip
        version, artifact = distill_model(store, home, request, on_progress, tell)
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
    rows = [
        (name, f"{one['before']:.4f}", f"{one['after']:.4f}")
        for name, one in figures["domains"].items()
    ]
    if rows:
        print_table(("domain, held out", "before", "after"), rows)
    print_line(version.label)


def _plot(figures: dict[str, object], path: Path) -> None:
    from thrifty.train.plot import plot_losses

    plot_losses(figures, path)
    err.print(f"the losses are drawn in {path}")
