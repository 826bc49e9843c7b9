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
from thrifty.spec.compress import ALL
from thrifty.types import Family, Format, OnProgress

CALIBRATION_TOKENS = 32_768


@dataclass(frozen=True)
class PruningRequest:
    """To what size a model is pruned, and with which text."""

    parameters: float | None
    """The share of the parameters to keep, above 0 and below 1; None if `vocabulary` alone says
    what goes."""
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
    vocabulary: int | float | str | None = None
    """How many tokens of the vocabulary stay: a number, a share below 1, `all`, or `auto`: as many
    as cost least. Default: `auto` where both layers and widths may go, else `all`."""

    @property
    def may_cut_vocabulary(self) -> bool:
        """Whether tokens may go."""
        if self.vocabulary is None:
            return self.depth and self.width
        return self.vocabulary != ALL

    def check(self, version: NamedVersion, artifact: Artifact) -> None:
        """Raise `CompressionError` for a request that no model, or not this one, can satisfy."""
        if self.parameters is None and self.vocabulary in (None, ALL):
            raise CompressionError(
                "nothing is to be pruned: say what share of the parameters stays (--parameters), or "
                "how many tokens (--vocabulary)"
            )
        if self.parameters is not None and not 0 < self.parameters < 1:
            raise CompressionError(
                "the share of parameters to keep must be above 0 and below 1, not "
                f"{self.parameters:g}"
            )
        self._check_vocabulary(version, artifact)
        if not self.depth and not self.width:
            raise CompressionError("nothing may be pruned: allow layers, widths or both to go")
        if artifact.description.format is Format.OPENVINO:
            raise CompressionError(
                f"{version.label} is already prepared for an engine; prune the checkpoint that it "
                "was made from"
            )
        if self.held_out is not None:
            check_no_overlap(self.calibration, self.held_out)

    def _check_vocabulary(self, version: NamedVersion, artifact: Artifact) -> None:
        asked = self.vocabulary
        if artifact.description.family is Family.ENCODER and (
            self.parameters is None or asked not in (None, ALL)
        ):
            raise CompressionError(
                f"{version.label} is an encoder; its tokens cannot be taken away, because text "
                "that uses them could not be written with the others; say what share of the "
                "parameters stays (--parameters)"
            )

    def recipe(self, version: int) -> dict[str, Any]:
        """The lineage's recipe; `version` is that of the pruning code."""
        return {
            "step": "prune", "version": version, "parameters": self.parameters,
            "depth": self.depth, "width": self.width, "tokens": self.tokens,
            "vocabulary": self.vocabulary,
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
