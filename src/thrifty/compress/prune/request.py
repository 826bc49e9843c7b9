"""What pruning is asked for, and how its result is registered: the same for decoders and encoders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.errors import CompressionError
from thrifty.types import Format, OnProgress


def check_request(
    version: NamedVersion, artifact: Artifact, parameters: float, *, depth: bool, width: bool
) -> None:
    """Raise `CompressionError` for what cannot be asked of any model."""
    if not 0 < parameters < 1:
        raise CompressionError(
            f"the share of parameters to keep is above 0 and below 1, not {parameters:g}"
        )
    if not depth and not width:
        raise CompressionError("nothing may be pruned: let layers go, or widths, or both")
    if artifact.description.format is Format.OPENVINO:
        raise CompressionError(
            f"{version.label} is prepared for an engine already; prune the checkpoint it was made from"
        )


def register(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    *,
    out: str,
    parameters: int,
    recipe: dict[str, Any],
    figures: dict[str, Any],
    write: Callable[[Path], None],
    on_progress: OnProgress,
) -> tuple[NamedVersion, Artifact]:
    """Have `write` put the checkpoint of so many `parameters` into a folder, and keep it as `out`."""
    store.require_space(2 * parameters + 50_000_000, f"pruning {version.label}")
    with store.stage(f"prune {artifact.id} {out}") as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        write(target)
        parents = (Parent(artifact.id, version.label),)
        lineage = Lineage(parents=parents, recipe=recipe, figures=figures)
        return store.add(target, out, lineage, on_progress=on_progress)
