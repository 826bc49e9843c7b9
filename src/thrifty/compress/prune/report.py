"""Reports of pruning: the candidates, the chosen one and its costs, for users and for the
lineage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar


@dataclass(frozen=True)
class LayerRemoval:
    """A removed layer, and the model's KL divergence without it and those removed before it."""

    layer: int
    influence: float
    kl_divergence: float


@dataclass(frozen=True)
class EncoderLayerRemoval:
    """A removed layer, and how similar the embeddings are without it and those removed before
    it.
    """

    layer: int
    influence: float
    cosine: float


@dataclass(frozen=True)
class PruningCandidate:
    """One way to reach the size, measured on text that it was not made with."""

    description: str
    parameters: int
    kl_divergence: float
    loss: float
    """By how much the log-probability of the text falls, in nats per byte. Unlike the divergence it
    compares models with different tokens."""


@dataclass(frozen=True)
class EncoderPruningCandidate:
    """One way to reach the size, measured on texts that it was not made with."""

    description: str
    parameters: int
    rank_correlation: float
    """Between the similarities of all pairs of texts and the full model's. The highest is
    chosen.
    """
    cosine: float | None
    """Between the embeddings and the full model's; None where they became narrower."""


CandidateT = TypeVar("CandidateT", PruningCandidate, EncoderPruningCandidate)
RemovalT = TypeVar("RemovalT", LayerRemoval, EncoderLayerRemoval)


@dataclass(frozen=True)
class _Report(ABC, Generic[CandidateT, RemovalT]):
    parameters_before: int
    candidates: list[CandidateT]
    chosen: CandidateT
    layers: list[RemovalT]
    """The removed layers, in the order of their removal."""
    errors: dict[str, float]
    """The relative squared error of the outputs of each matrix that lost inputs."""

    def to_lineage(self) -> dict[str, Any]:
        """The report as the lineage keeps it."""
        return {
            "way": self.chosen.description,
            "parameters": self.chosen.parameters,
            "parameters_before": self.parameters_before,
            **self._scores(),
            "layers_removed": [asdict(removal) for removal in self.layers],
            "output_error": self.errors,
        }

    @abstractmethod
    def _scores(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PruningReport(_Report[PruningCandidate, LayerRemoval]):
    """What pruning a decoder did. Errors are relative to the mean square of a matrix's outputs."""

    vocabulary: dict[str, Any] | None = None
    """How many tokens stay, and how much longer text becomes; None if all stay."""

    def _scores(self) -> dict[str, Any]:
        scores = {
            "kl_divergence_of_taken": self.chosen.kl_divergence,
            "lost_nats_per_byte_of_taken": self.chosen.loss,
            "calibration_kl_divergence": {c.description: c.kl_divergence for c in self.candidates},
            "calibration_lost_nats_per_byte": {c.description: c.loss for c in self.candidates},
        }
        return scores | ({} if self.vocabulary is None else {"vocabulary": self.vocabulary})


@dataclass(frozen=True)
class EncoderPruningReport(_Report[EncoderPruningCandidate, EncoderLayerRemoval]):
    """What pruning an encoder did. Errors are relative to the variance of a matrix's outputs."""

    def _scores(self) -> dict[str, Any]:
        return {
            "calibration_rank_correlation": {
                c.description: c.rank_correlation for c in self.candidates
            },
            "calibration_cosine": {c.description: c.cosine for c in self.candidates},
        }
