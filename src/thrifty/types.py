"""The few shapes that several layers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """What a model is for, by the field's two families."""

    DECODER = "decoder"
    """GPT kind: chat and completion."""
    ENCODER = "encoder"
    """BERT kind: embeddings."""


class Format(StrEnum):
    """The forms of a model that Thrifty loads."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    OPENVINO = "openvino"


class ReplicaState(StrEnum):
    """The life of a replica; only `READY` ones get traffic."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """It runs but does not answer its probe."""
    DRAINING = "draining"
    BACKOFF = "backoff"
    """It died; a restart is due."""
    CRASH_LOOP = "crash_loop"
    """It died too often to go on by itself."""
    STOPPED = "stopped"


@dataclass(frozen=True)
class Progress:
    """How far a step has come. `total` is 0 while unknown; `unit` is `bytes` or a plain noun."""

    step: str
    done: float
    total: float
    unit: str = "bytes"


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Tell nobody."""
