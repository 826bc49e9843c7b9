"""What a training on rows is asked to do, and whether it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.artifacts import Artifact, NamedVersion
from thrifty.data.augmentation import AS_IT_IS, Augmentation
from thrifty.data.built import BuiltSet
from thrifty.errors import TrainingError
from thrifty.train.rows import Method
from thrifty.types import Family

WINDOW = 1024
EPOCHS = 3.0
LORA_RANK = 16
BETA = 0.1


@dataclass(frozen=True)
class TrainingRequest:
    """Which model learns from which rows, and how. None takes the method's default."""

    model: str
    """A decoder with a chat template, or for `contrastive` an encoder: a stored name, a source, or
    a path."""
    data: Path | Sequence[Path]
    """JSON lines (`rows`), in one file or several."""
    method: Method
    out: str
    """The new model's name."""
    data_name: str | None = None
    """What the lineage calls the data. Default: the file's name."""
    held_out: Path | Sequence[Path] | None = None
    """Rows to evaluate on during the training. Default: a tenth of `data`, by prompt."""
    epochs: float | None = None
    """Passes over the rows; this or `minutes`. Default: 3 epochs."""
    minutes: float | None = None
    learning_rate: float | None = None
    lora_rank: int = LORA_RANK
    """0 trains all weights."""
    adapter: bool = False
    """Keep the low-rank changes beside the base model, and do not merge them."""
    window: int | None = None
    """Rows with more tokens are set aside. Default: 1024, and for encoders as much as they take."""
    batch: int | None = None
    """Rows in a step."""
    micro_batch: int | None = None
    """Rows that are computed at once."""
    beta: float = BETA
    sft_weight: float = 0.0
    """In DPO, how much of the loss of SFT on the chosen answers is added."""
    checkpointing: bool = False
    processes: int = 1
    """How many processes train together: one for each GPU."""
    ray: str | None = None
    """The address of a Ray cluster's head: the training runs on a node of it."""
    seed: int = 0
    patience: int = 4
    resume: bool = False
    """Refuse to begin: there must be a training that was stopped."""
    restart: bool = False
    """Begin anew: a training that was stopped is left."""
    data_set: BuiltSet | None = None
    """The built set that the files are of."""
    refresh: Callable[[], None] | None = None
    """Writes `data` anew. It is called unless a training on what is there was stopped."""
    augment: Augmentation = AS_IT_IS
    """Which other forms of rows are learned."""

    @property
    def files(self) -> list[Path]:
        """The files of rows to learn from."""
        return [self.data] if isinstance(self.data, Path) else list(self.data)

    @property
    def held_out_files(self) -> list[Path]:
        """The files of rows to evaluate on; none where some of the others are held out."""
        return [self.held_out] if isinstance(self.held_out, Path) else list(self.held_out or ())

    @property
    def name(self) -> str:
        """What the lineage and messages call the data."""
        return self.data_name or ", ".join(path.name for path in self.files)


def check_request(request: TrainingRequest) -> None:
    """Raise `TrainingError` for settings that cannot be, and files that are not there."""
    if request.epochs is not None and request.minutes is not None:
        raise TrainingError("set how long it lasts: either --epochs or --minutes")
    if request.adapter and not request.lora_rank:
        raise TrainingError(
            "an adapter holds low-rank changes, and --lora-rank 0 trains all weights; leave one of "
            "them out"
        )
    if request.ray is not None and request.minutes is not None:
        raise TrainingError(
            "minutes are counted by a clock of this machine; set --epochs for a training on a Ray "
            "cluster"
        )
    if request.augment.auto and request.minutes is not None:
        raise TrainingError(
            "augment: auto compares trainings of as many steps; set --epochs, not --minutes, or name "
            "what to use (--augment noise)"
        )
    if request.epochs is not None and not 0 < request.epochs < float("inf"):
        raise TrainingError(f"--epochs must be above 0, not {request.epochs:g}")
    for name in ("batch", "micro_batch", "processes"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise TrainingError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if request.window is not None and request.window < 32:
        raise TrainingError(f"--window must be at least 32 tokens, not {request.window}")
    for path in (*request.files, *request.held_out_files):
        if not path.is_file():
            raise TrainingError(f"{path} is no file; rows are read from a file of JSON lines")


def check_model(request: TrainingRequest, version: NamedVersion, artifact: Artifact) -> None:
    """Raise `TrainingError` for models that the method does not train."""
    family = artifact.description.family
    if family not in (Family.DECODER, Family.ENCODER):
        raise TrainingError(f"{version.label} is {family.with_article}, which is not trained here")
    encoder = family is Family.ENCODER
    if encoder != (request.method is Method.CONTRASTIVE):
        fitting = "contrastive" if encoder else "sft, dpo or kto"
        raise TrainingError(
            f"{version.label} is {family.with_article}, which --method {request.method} does not "
            f"train; take {fitting}"
        )
    if encoder and request.adapter:
        raise TrainingError(
            f"{version.label} is an encoder, whose changes are always merged; leave --adapter out"
        )
