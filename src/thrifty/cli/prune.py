"""`thrifty prune`: a model with fewer tokens, layers, neurons, heads or channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.show import err, print_json, print_line, print_table, show_progress, tell
from thrifty.cli.texts import find_named
from thrifty.compress.mix import choose_text, find_mix
from thrifty.compress.overlap import check_apart
from thrifty.compress.prune.encoder import prune_encoder
from thrifty.compress.prune.prune import prune_decoder
from thrifty.compress.prune.report import EncoderPruningReport, PruningReport
from thrifty.compress.prune.request import PruningRequest
from thrifty.errors import CompressionError
from thrifty.home import find_home
from thrifty.spec.compress import parse_vocabulary
from thrifty.types import Family
from thrifty.units import format_bytes


def run_prune(
    model: str,
    *,
    parameters: float | None,
    vocabulary: str | None,
    depth_only: bool,
    width_only: bool,
    out: str,
    text: Sequence[str],
    held_out: str | None,
    tokens: int,
    as_json: bool,
) -> None:
    """Prune a model."""
    if depth_only and width_only:
        raise CompressionError("--depth-only and --width-only exclude each other")
    try:
        asked = None if vocabulary is None else parse_vocabulary(vocabulary)
    except ValueError as error:
        raise CompressionError(f"--vocabulary {error}") from None
    home = find_home()
    store = Store(home.models)
    with show_progress() as on_progress:
        version, artifact = fetch_model(store, model, on_progress=on_progress)
        learned = find_mix(text or choose_text(store, artifact), home.data, store, on_progress)
        judged = find_named(held_out, home, store, on_progress)
        if artifact.description.family is Family.DECODER:
            learned = check_apart(learned, (), home, store, tell, on_progress)
        prune = prune_encoder if artifact.description.family is Family.ENCODER else prune_decoder
        request = PruningRequest(
            parameters, out, learned, judged, depth=not width_only, width=not depth_only,
            tokens=tokens, vocabulary=asked,
        )  # fmt: skip
        new_version, new_artifact, report = prune(store, version, artifact, request, on_progress)
    figures = new_version.lineage.figures
    if as_json:
        print_json(
            {"name": new_version.label, "bytes": new_artifact.size_bytes, "figures": figures}
        )
        return
    if isinstance(report, EncoderPruningReport):
        _show_encoder(report)
    elif report is not None:
        _show_decoder(report)
    err.print(f"taken: {figures['way']}")
    for line in _describe_vocabulary(figures):
        err.print(line)
    err.print(
        f"{new_version.label}: {figures['parameters']:,} of {figures['parameters_before']:,} "
        f"parameters, {format_bytes(new_artifact.size_bytes)}"
    )
    print_line(new_version.label)


def _show_decoder(report: PruningReport) -> None:
    rows = [
        (
            one.description,
            f"{one.parameters / report.parameters_before:.1%}",
            f"{one.kl_divergence:.4f}",
            f"{one.loss:.4f}",
        )
        for one in report.candidates
    ]
    print_table(
        ("what is kept", "parameters", "KL divergence, calibration text", "lost, nats per byte"),
        rows,
    )
    if report.layers:
        print_line()
        print_table(
            ("layer left out", "its influence", "KL divergence, with those before it"),
            [(str(one.layer), f"{one.influence:.4f}", f"{one.kl_divergence:.4f}")
             for one in report.layers],
        )  # fmt: skip


def _describe_vocabulary(figures: dict[str, Any]) -> list[str]:
    """What a smaller vocabulary costs."""
    found = figures.get("vocabulary")
    if found is None:
        return []
    sources = ", ".join(f"{name} {more:.1%}" for name, more in found["longer_by_source"].items())
    return [
        f"vocabulary: {found['tokens']:,} of {found['tokens_before']:,} tokens, "
        f"{found['parameters']:,} parameters less; text needs {found['longer']:.1%} more tokens "
        f"({sources})",
        "languages and scripts that this text does not hold need many more; name text of yours with "
        "--text",
    ]


def _show_encoder(report: EncoderPruningReport) -> None:
    rows = [
        (one.description, f"{one.parameters / report.parameters_before:.1%}", f"{one.rank_correlation:.4f}",
         "" if one.cosine is None else f"{one.cosine:.4f}")
        for one in report.candidates
    ]  # fmt: skip
    print_table(
        ("what is kept", "parameters", "rank correlation, calibration text", "cosine"), rows
    )
    if report.layers:
        print_line()
        print_table(
            ("layer left out", "its influence", "cosine, with those before it"),
            [(str(one.layer), f"{one.influence:.4f}", f"{one.cosine:.4f}")
             for one in report.layers],
        )  # fmt: skip
