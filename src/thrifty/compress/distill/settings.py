"""What a distillation is asked to do, apart from modules that import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.errors import CompressionError

DIVERGENCES = ("forward", "reverse", "jensen-shannon", "skewed-forward", "skewed-reverse")


@dataclass(frozen=True)
class Training:
    """How a student is trained."""

    tokens: int
    """Of the text, over all steps; more than the text has are read again."""
    divergence: str = "forward"
    mix: float = 0.0
    """The share of the plain language-model loss in the loss."""
    hidden: float = 0.0
    """The weight of the distance between both models' hidden states, beside the loss."""
    on_policy: float = 0.0
    """The share of windows whose second half the student writes."""
    learning_rate: float | None = None
    """The highest; None: by the size of a step."""
    batch_tokens: int | None = None
    """In one step of the optimizer; None: 4096, or so many fewer that there are some hundred steps."""
    micro_batch: int = 1
    """Windows that are computed together, of those of a step."""
    warm_up: float = 0.05
    """The share of steps in which the learning rate rises."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The norm that gradients are cut to."""
    lora_rank: int = 0
    """Of the changes to matrices; 0 trains all weights."""
    freeze_embeddings: bool = False
    """Leave the tokens' embeddings as they are, and the head with them where it is the same matrix."""
    checkpointing: bool = False
    """Compute activations anew on the way back: less memory, more time."""
    seed: int = 0
    every_steps: int = 0
    """Steps between two looks at the held-out windows, and two checkpoints; 0: at least 25, and so many that
    looks take little of the time."""
    patience: int = 6
    """So many looks in a row without a better one end it."""

    def __post_init__(self) -> None:
        """Raise `CompressionError` for what cannot be."""
        if self.divergence not in DIVERGENCES:
            raise CompressionError(
                f"there is no divergence {self.divergence!r}; there are {', '.join(DIVERGENCES)}"
            )
        for name, least in (("tokens", 1), ("batch_tokens", 1), ("micro_batch", 1), ("lora_rank", 0),
                            ("every_steps", 0), ("patience", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise CompressionError(f"{name} is {least} or more, not {value}")
        for name in ("mix", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise CompressionError(f"{name} is a share, from 0 to 1")
        rate = self.learning_rate
        if (rate is not None and not 0 < rate < 1) or self.hidden < 0:
            raise CompressionError("learning_rate is above 0 and below 1, hidden 0 or more")

    @property
    def needs_live_teacher(self) -> bool:
        """Whether a teacher has to say things of which nobody knows before what they will be."""
        return self.hidden > 0 or self.on_policy > 0
