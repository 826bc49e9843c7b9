"""The settings of a distillation, in a module that does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.errors import CompressionError
from thrifty.train.settings import LoopSettings

DIVERGENCES = ("forward", "reverse", "jensen-shannon", "skewed-forward", "skewed-reverse")
FEW_TOKENS = 1_000_000
"""With fewer than these, a decoder learns more if its token embeddings stay as they are: most rows
are seen too rarely."""


@dataclass(frozen=True)
class Training(LoopSettings):
    """How a student is trained. `minutes` count the teacher's time, too."""

    divergence: str = "forward"
    mix: float = 0.0
    """The share of the plain language-modelling loss in the loss."""
    hidden: float = 0.0
    """The weight of the distance between the hidden states, added to the loss."""
    on_policy: float = 0.0
    """The share of windows in whose place the student writes: another answer to a prompt, or
    another second half of a text without one."""
    answers: bool = True
    """Whether the teacher answers the prompts of conversations, where it can be asked."""
    temperature: float = 1.0
    """At which it is sampled."""
    freeze_embeddings: bool | None = None
    """Do not train the token embeddings, nor the head if it shares their matrix. None: a decoder's
    are frozen where a training is given minutes, or fewer than `FEW_TOKENS` tokens."""

    def __post_init__(self) -> None:
        """Raise `CompressionError` for invalid settings."""
        super().__post_init__()
        if self.steps is not None:
            raise CompressionError("a distillation lasts a number of tokens, or of minutes")
        if self.divergence not in DIVERGENCES:
            raise CompressionError(
                f"unknown divergence {self.divergence!r}; known are {', '.join(DIVERGENCES)}"
            )
        if not 0 < self.temperature <= 2:
            raise CompressionError(
                f"temperature must be above 0 and at most 2, not {self.temperature:g}"
            )
        for name in ("mix", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise CompressionError(f"{name} must be between 0 and 1")
        if self.hidden < 0:
            raise CompressionError("hidden must be at least 0")

    @property
    def freezes_embeddings(self) -> bool:
        """Whether a decoder's token embeddings stay as they are."""
        if self.freeze_embeddings is not None:
            return self.freeze_embeddings
        return self.tokens is None or self.tokens < FEW_TOKENS

    @property
    def needs_live_teacher(self) -> bool:
        """Whether the teacher must see what is unknown before training starts."""
        return self.hidden > 0 or self.on_policy > 0
