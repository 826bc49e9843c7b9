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


class Role(StrEnum):
    """What the holder of an API key may do."""

    VIEWER = "viewer"
    """Read metrics and the state of the service."""
    MONITOR = VIEWER
    """The earlier name of viewers."""
    USER = "user"
    """Call models."""
    OPERATOR = "operator"
    """Run the service: change traffic, apply specs, roll back. May also call models and read what
    viewers read."""
    ADMIN = "admin"
    """Everything, API keys and other tenants' data too."""

    @classmethod
    def _missing_(cls, value: object) -> Role | None:
        # Version 0.1 wrote this name for viewers; its rows are kept, and it may still run beside us.
        return cls.VIEWER if value == "monitor" else None

    def may_act_as(self, required: Role) -> bool:
        """Whether a key of this role may do what needs the role `required`."""
        return self in required.holders()

    def holders(self) -> frozenset[Role]:
        """The roles that may do what needs this role."""
        return _HOLDERS[self]


_HOLDERS = {
    Role.VIEWER: frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN}),
    Role.USER: frozenset({Role.USER, Role.OPERATOR, Role.ADMIN}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.ADMIN}),
    Role.ADMIN: frozenset({Role.ADMIN}),
}


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
