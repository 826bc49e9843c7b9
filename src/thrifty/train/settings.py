"""What every training can be told, in a module that does not import PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from thrifty.errors import TrainingError

SCHEDULES = ("cosine", "constant")
IMPROVED_NOTHING = "training improved nothing"
"""How the error of a training begins that did not lower the loss on held-out data. It crosses a
process as text."""


@dataclass(frozen=True)
class LoopSettings:
    """How long a training lasts, and how its steps are made.

    Set one of `tokens`, `steps` and `minutes`. What is derived from the model or the data has None.
    """

    tokens: int | None = None
    """Of the data, over all steps. Shorter data are read repeatedly."""
    minutes: float | None = None
    """How long all of it takes, preparations included."""
    steps: int | None = None
    """Optimizer steps."""
    schedule: str | None = None
    """The learning rate after the warm-up. `cosine`: falls to the end, which must be known.
    `constant`: stays, and the result is the average of the last weights; such a training can go on.
    None: `cosine` for `tokens` and `steps`; for `minutes` constant, and falling to 0 in the last
    quarter of the time. What goes on begins from before the fall."""
    learning_rate: float | None = None
    """The peak learning rate. None: derived from the batch size."""
    batch_tokens: int | None = None
    """Tokens in an optimizer step. None: 4096, or less to allow some hundred steps."""
    batch_examples: int | None = None
    """Examples in an optimizer step, in place of `batch_tokens`."""
    micro_batch: int = 1
    """Examples that are computed at once, of those of a step."""
    warm_up: float = 0.05
    """The share of steps over which the learning rate rises."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """The norm that gradients are clipped to."""
    lora_rank: int = 0
    """The rank of LoRA's updates; 0 trains all weights."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    seed: int = 0
    every_steps: int = 0
    """Steps between evaluations on held-out data, each with a checkpoint. 0: at least 25, and so
    many that evaluation takes little of the time."""
    patience: int = 6
    """Stop after this many evaluations in a row without improvement."""

    def __post_init__(self) -> None:
        """Raise `TrainingError` for invalid settings."""
        if sum(one is not None for one in (self.tokens, self.steps, self.minutes)) != 1:
            raise TrainingError("set how much is learned: either tokens, steps or minutes")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise TrainingError(f"minutes must be above 0, not {self.minutes:g}")
        if self.schedule not in (None, *SCHEDULES):
            raise TrainingError(
                f"unknown schedule {self.schedule!r}; known are {', '.join(SCHEDULES)}"
            )
        if self.schedule == "cosine" and self.minutes is not None:
            raise TrainingError(
                "a cosine must know its end; use tokens instead of minutes, or the constant schedule"
            )
        for name, least in (("tokens", 1), ("steps", 1), ("batch_tokens", 1), ("batch_examples", 1),
                            ("micro_batch", 1), ("lora_rank", 0), ("every_steps", 0),
                            ("patience", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name} must be at least {least}, not {value}")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < 1:
            raise TrainingError(f"learning_rate must be above 0 and below 1, not {rate:g}")

    @property
    def averages(self) -> bool:
        """Whether the rate stays and weights are averaged."""
        return self.schedule == "constant" or self.falls

    @property
    def falls(self) -> bool:
        """Whether a constant rate falls at the end of the time."""
        return self.schedule is None and self.minutes is not None

    @property
    def described_schedule(self) -> str:
        """The learning rate's schedule, for reports."""
        if self.falls:
            return "constant, then falling"
        return "constant" if self.averages else "cosine"

    @property
    def freezes_embeddings(self) -> bool | None:
        """Whether the token embeddings stay as they are."""
        return False

    @property
    def keeps_last(self) -> bool:
        """Whether the last state is the result, not that with the lowest held-out loss."""
        return False

    @property
    def epochs_differ(self) -> bool:
        """Whether each epoch shows other forms of the examples. The loop then numbers them on from
        epoch to epoch: n stands for example n % examples in epoch n // examples.
        """
        return False


@dataclass(frozen=True)
class RowSettings(LoopSettings):
    """How a model learns from rows of data."""

    method: str = "sft"
    """`sft`, `dpo`, `kto` or `contrastive`."""
    beta: float = 0.1
    """How much `dpo` and `kto` hold the model to what it was, above 0."""
    sft_weight: float = 0.0
    """In `dpo`, how much of the loss of `sft` on the chosen answers is added."""
    liked_weight: float = 1.0
    disliked_weight: float = 1.0
    """The weights of liked and disliked answers in `kto`."""
    temperature: float = 0.05
    """What similarities are divided by in `contrastive`: the lower, the more the hardest negatives
    count."""
    freeze_embeddings: bool = False
    """Do not train the token embeddings, nor the head if it shares their matrix."""
    augment: dict[str, Any] | None = None
    """Other forms of rows (`data.augmentation.Augmentation` as JSON). None: every epoch is the
    same."""

    def __post_init__(self) -> None:
        """Raise `TrainingError` for invalid settings."""
        super().__post_init__()
        for name in ("beta", "liked_weight", "disliked_weight", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be above 0, not {getattr(self, name):g}")
        if not 0 <= self.sft_weight < float("inf"):
            raise TrainingError(f"sft_weight must be at least 0, not {self.sft_weight:g}")

    @property
    def freezes_embeddings(self) -> bool:
        """See `freeze_embeddings`."""
        return self.freeze_embeddings

    @property
    def keeps_last(self) -> bool:
        """Yes for preferences: what a few dozen held-out judgements give is noise beside what is
        learned, and their loss often rises while answers become better liked.
        """
        return self.method in ("dpo", "kto")

    @property
    def epochs_differ(self) -> bool:
        """See `augment`."""
        return self.augment is not None


def balance_weights(liked: int, disliked: int) -> tuple[float, float]:
    """The weights of liked and disliked answers: 1 for the more frequent kind, and more for the
    other one where their products with the counts are not between 1:1 and 4:3, as Ethayarajh et al.
    (2024, 2402.01306) recommend. Both counts are above 0.
    """
    ratio = liked / disliked
    if ratio < 1:
        return 1 / ratio, 1.0
    if ratio > 4 / 3:
        return 1.0, ratio * 3 / 4
    return 1.0, 1.0


def describe_same(training: LoopSettings) -> dict[str, Any]:
    """What must be the same for a training to go on: all but its minutes."""
    return leave_out_none({**asdict(training), "minutes": None})


def leave_out_none(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are set; earlier notes lack those that a later release added."""
    return {name: value for name, value in settings.items() if value is not None}
