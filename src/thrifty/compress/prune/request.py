"""What a pruning is asked to do, and how its result is registered: the same for both families."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.compress.mix import Text, as_mix
from thrifty.compress.overlap import check_no_overlap
from thrifty.errors import CompressionError
from thrifty.types import Format, OnProgress

CALIBRATION_TOKENS = 32_768


@dataclass(frozen=True)
class PruningRequest:
    """To what size a model is pruned, and with which text."""

    parameters: float
    """The share of the parameters to keep, above 0 and below 1."""
    out: str
    """The new model's name."""
    calibration: Text
    """The text that candidates are made from and chosen by."""
    held_out: Path | None = None
    """The text that the result will be evaluated on; it must not overlap the calibration text."""
    depth: bool = True
    """Whether layers may be removed."""
    width: bool = True
    """Whether neurons, heads and channels may be removed."""
    tokens: int = CALIBRATION_TOKENS
    """How many tokens of the calibration text candidates are made from."""

    def check(self, version: NamedVersion, artifact: Artifact) -> None:
        """Raise `CompressionError` for a request that no model, or not this one, can satisfy."""
        if not 0 < self.parameters < 1:
            raise CompressionError(
                "the share of parameters to keep must be above 0 and below 1, not "
                f"{self.parameters:g}"
            )
        if not self.depth and not self.width:
            raise CompressionError("nothing may be pruned: allow layers, widths or both to go")
        if artifact.description.format is Format.OPENVINO:
            raise CompressionError(
                f"{version.label} is already prepared for an engine; prune the checkpoint that it "
                "was made from"
            )
        if self.held_out is not None:
            check_no_overlap(self.calibration, self.held_out)

    def recipe(self, version: int) -> dict[str, Any]:
        """The lineage's recipe; `version` is that of the pruning code."""
        return {
            "step": "prune", "version": version, "parameters": self.parameters,
            "depth": self.depth, "width": self.width, "tokens": self.tokens,
            "calibration_sha256": as_mix(self.calibration).sha256,
        }  # fmt: skip


def find_pruned(
    store: Store, artifact: Artifact, request: PruningRequest, recipe: dict[str, Any]
) -> tuple[NamedVersion, Artifact] | None:
    """The model that the same request made before, if there is one."""
    made = store.find_made(artifact.id, recipe)
    return made if made is not None and made[0].name == request.out else None


def register(
    store: Store,
    source: tuple[NamedVersion, Artifact],
    name: str,
    recipe: dict[str, Any],
    report: dict[str, Any],
    write: Callable[[Path], None],
    on_progress: OnProgress,
) -> tuple[NamedVersion, Artifact]:
    """Add the checkpoint that `write` writes into a folder to the store as `name`.

    `report` is what the lineage keeps; its "parameters" say how large the checkpoint becomes.
    """
    version, artifact = source
    size_bytes = 2 * int(report["parameters"]) + 50_000_000
    store.require_space(size_bytes, f"pruning {version.label}")
    with store.stage(f"prune {artifact.id} {name}") as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        write(target)
        parents = (Parent(artifact.id, version.label),)
        lineage = Lineage(parents=parents, recipe=recipe, figures=report)
        return store.add(target, name, lineage, on_progress=on_progress)
