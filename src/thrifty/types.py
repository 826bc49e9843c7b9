"""The types that several layers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """The families of models."""

    DECODER = "decoder"
    """GPT-like: chat and completion."""
    ENCODER = "encoder"
    """BERT-like: embeddings."""
    RERANKER = "reranker"
    """BERT-like with one label, a cross-encoder: how relevant a document is to a query."""

    @property
    def with_article(self) -> str:
        """As sentences call a model of it."""
        return f"an {self}" if self is Family.ENCODER else f"a {self}"


class Format(StrEnum):
    """The supported formats of models."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    OPENVINO = "openvino"
    ADAPTER = "adapter"
    """LoRA matrices beside a base model, in PEFT's layout."""


class Role(StrEnum):
    """What the holder of an API key may do."""

    VIEWER = "viewer"
    """Read metrics and the state of the service."""
    MONITOR = VIEWER
    """The earlier name of `VIEWER`."""
    USER = "user"
    """Call models."""
    OPERATOR = "operator"
    """Run the service: change traffic, apply specs, roll back; also what users and viewers may
    do.
    """
    ADMIN = "admin"
    """Everything, including API keys and other tenants' data."""

    @classmethod
    def _missing_(cls, value: object) -> Role | None:
        # The name of viewers in version 0.1 and in the database.
        return cls.VIEWER if value == "monitor" else None

    def may_act_as(self, required: Role) -> bool:
        """Whether this role includes the rights of the role `required`."""
        return self in required.holders()

    def holders(self) -> frozenset[Role]:
        """The roles that include the rights of this role."""
        return _HOLDERS[self]


_HOLDERS = {
    Role.VIEWER: frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN}),
    Role.USER: frozenset({Role.USER, Role.OPERATOR, Role.ADMIN}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.ADMIN}),
    Role.ADMIN: frozenset({Role.ADMIN}),
}


class ReplicaState(StrEnum):
    """The states of a replica; only `READY` replicas get traffic."""

    STARTING = "starting"
    READY = "ready"
    PARKED = "parked"
    """Running with its model loaded and little memory, while nobody asks."""
    UNHEALTHY = "unhealthy"
    """Running, but not answering its probe."""
    DRAINING = "draining"
    BACKOFF = "backoff"
    """Exited; a restart is due."""
    FAILED = "failed"
    """Its start failed for a reason of its own; another one is due."""
    CRASH_LOOP = "crash_loop"
    """Exited too often to be restarted automatically."""
    STOPPED = "stopped"


@dataclass(frozen=True)
class Progress:
    """The progress of a step. `total` is 0 if unknown; `unit` is `bytes` or a plural noun."""

    step: str
    done: float
    total: float
    unit: str = "bytes"


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Report progress to nobody."""
