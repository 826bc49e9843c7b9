"""What pruning an encoder tried, took and cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EncoderLayerRemoval:
    """One layer that goes, and how near the embeddings are once it and those before it are gone."""

    layer: int
    influence: float
    cosine: float


@dataclass(frozen=True)
class EncoderTried:
    """What one way to a size came to, on text that it was not made with."""

    way: str
    parameters: int
    rank_correlation: float
    """Of the similarities of all pairs of texts with the whole model's. The nearest is taken."""
    cosine: float | None
    """Of the embeddings with the whole model's; None where they became narrower."""


@dataclass(frozen=True)
class PrunedEncoder:
    """What was pruned, and what each part cost."""

    parameters_before: int
    tried: list[EncoderTried]
    taken: EncoderTried
    layers: list[EncoderLayerRemoval]
    """Those that went, in their order."""
    errors: dict[str, float]
    """For each matrix with fewer inputs: squared error of its outputs over their variance."""

    def as_figures(self) -> dict[str, Any]:
        """As the lineage keeps it."""
        return {
            "way": self.taken.way,
            "parameters": self.taken.parameters,
            "parameters_before": self.parameters_before,
            "calibration_rank_correlation": {one.way: one.rank_correlation for one in self.tried},
            "calibration_cosine": {one.way: one.cosine for one in self.tried},
            "layers_removed": [asdict(one) for one in self.layers],
            "output_error": self.errors,
        }
