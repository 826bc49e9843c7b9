"""The settings of a distillation, in a module that does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.errors import CompressionError

DIVERGENCES = ("forward", "reverse", "jensen-shannon", "skewed-forward", "skewed-reverse")
SCHEDULES = ("cosine", "constant")
FEW_TOKENS = 1_000_000
"""With fewer than these, a decoder learns more if its token embeddings stay as they are: most rows
are seen too rarely."""


@dataclass(frozen=True)
class Training:
    """How a student is trained."""

    tokens: int | None = None
    """Of the text, over all steps. A shorter text is read repeatedly."""
    minutes: float | None = None
    """How long all of it takes, the teacher's time included. Either this or `tokens` is set."""
    divergence: str = "forward"
    mix: float = 0.0
    """The share of the plain language-modelling loss in the loss."""
    hidden: float = 0.0
    """The weight of the distance between the hidden states, added to the loss."""
    on_policy: float = 0.0
    """The share of windows whose second half the student generates."""
    answers: bool = True
    """Whether the teacher answers the prompts of conversations, where it can be asked."""
    temperature: float = 1.0
    """At which it is sampled."""
    schedule: str | None = None
    """The learning rate after the warm-up. `cosine`: falls to the end, which must be known.
    `constant`: stays, and the result is the average of the last weights; such a training can go on.
    None: `cosine` for `tokens`, `constant` for `minutes`."""
    learning_rate: float | None = None
    """The peak learning rate. None: derived from the batch size."""
    batch_tokens: int | None = None
    """Tokens in an optimizer step. None: 4096, or less to allow some hundred steps."""
    micro_batch: int = 1
    """Windows that are computed at once, of those of a step."""
    warm_up: float = 0.05
    """The share of steps over which the learning rate rises."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The norm that gradients are clipped to."""
    lora_rank: int = 0
    """The rank of LoRA's updates; 0 trains all weights."""
    freeze_embeddings: bool | None = None
    """Do not train the token embeddings, nor the head if it shares their matrix. None: a decoder's
    are frozen where a training is given minutes, or fewer than `FEW_TOKENS` tokens."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    seed: int = 0
    every_steps: int = 0
    """Steps between evaluations on held-out windows, each with a checkpoint. 0: at least 25, and so
    many that evaluation takes little of the time."""
    patience: int = 6
    """Stop after this many evaluations in a row without improvement."""

    def __post_init__(self) -> None:
        """Raise `CompressionError` for invalid settings."""
        if self.divergence not in DIVERGENCES:
            raise CompressionError(
                f"unknown divergence {self.divergence!r}; known are {', '.join(DIVERGENCES)}"
            )
        if (self.tokens is None) == (self.minutes is None):
            raise CompressionError("set how much is learned: either tokens or minutes")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise CompressionError(f"minutes must be above 0, not {self.minutes:g}")
        if self.schedule not in (None, *SCHEDULES):
            raise CompressionError(
                f"unknown schedule {self.schedule!r}; known are {', '.join(SCHEDULES)}"
            )
        if self.schedule == "cosine" and self.minutes is not None:
            raise CompressionError(
                "a cosine must know its end; use tokens instead of minutes, or the constant schedule"
            )
        if not 0 < self.temperature <= 2:
            raise CompressionError(
                f"temperature must be above 0 and at most 2, not {self.temperature:g}"
            )
        for name, least in (("tokens", 1), ("batch_tokens", 1), ("micro_batch", 1), ("lora_rank", 0),
                            ("every_steps", 0), ("patience", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise CompressionError(f"{name} must be at least {least}, not {value}")
        for name in ("mix", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise CompressionError(f"{name} must be between 0 and 1")
        rate = self.learning_rate
        if (rate is not None and not 0 < rate < 1) or self.hidden < 0:
            raise CompressionError(
                "learning_rate must be above 0 and below 1, and hidden at least 0"
            )

    @property
    def averages(self) -> bool:
        """Whether the rate stays and weights are averaged."""
        return self.schedule == "constant" or (self.schedule is None and self.minutes is not None)

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
