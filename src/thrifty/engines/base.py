"""What an engine is to the rest of Thrifty: one adapter, one folder or file, one line in a table.

An adapter says what its engine can load and do here and why not, prepares a model for it, gives
the command that starts a server, tells when that server is ready, and reads its load. It runs
nothing by itself: the same adapter serves every fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.engines.machine import Machine
from thrifty.errors import Problem
from thrifty.spec import Spec
from thrifty.spec.section import Section
from thrifty.types import OnProgress


@dataclass(frozen=True)
class Capability:
    """One line of what an engine can do on a machine. `reason` says why not, or what it gives."""

    what: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Served:
    """What a replica is to serve: everything its command needs, and nothing of the user's spec."""

    name: str
    """What clients write in `model`."""
    engine: str
    version: str
    """The version's label, as metrics and headers show it."""
    revision: str
    """Changes whenever an answer could: the model's bytes, the engine, its options."""
    family: str
    folder: Path | None = None
    artifact: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The engine's options, resolved: no `auto` is left."""


@dataclass(frozen=True)
class Launch:
    """How one replica's server is started."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineLoad:
    """How busy a replica is, by its own account."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    facts: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """An adapter. See the module's text."""

    @property
    def kind(self) -> str:
        """The name that specs use."""
        ...

    @property
    def options(self) -> type[Section]:
        """The model of its options in the spec."""
        ...

    @property
    def honours(self) -> frozenset[str] | None:
        """Request fields that it can honour; None where only the server behind it knows."""
        ...

    @property
    def salt_field(self) -> str | None:
        """The request field that keeps tenants apart in its prefix cache (vLLM's is `cache_salt`);
        None where it has none, and then tenants of one replica share cached beginnings.
        """
        ...

    @property
    def external(self) -> bool:
        """Whether its servers are somebody else's: they are used, not started or stopped."""
        ...

    def capabilities(self, machine: Machine) -> list[Capability]:
        """What it can load and do on `machine`."""
        ...

    def check(self, spec: Spec, artifact: Artifact | None, machine: Machine) -> list[Problem]:
        """Why this spec cannot be served here; empty if it can. `artifact` is None where none is
        needed.
        """
        ...

    def prepare(
        self,
        spec: Spec,
        model: tuple[NamedVersion, Artifact] | None,
        store: Store,
        machine: Machine,
        on_progress: OnProgress,
    ) -> Served:
        """Make the model ready to be loaded, once; later calls find what was made. Blocks."""
        ...

    def launch(
        self, served: Served, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """The command of a server on loopback `port`, using `cores` and that share of memory."""
        ...

    def find_slots(self, served: Served) -> int | None:
        """How many requests a replica runs at once before they slow each other down or wait; None
        where that is not known.
        """
        ...

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Why the server at `url` is not ready; None when it is. `deep` has it generate a token."""
        ...

    async def read_load(self, url: str) -> EngineLoad:
        """How busy the server at `url` is."""
        ...


def parse_options(engine: Engine, spec: Spec) -> Any:
    """The engine's options in `spec`, as its own model. Raises pydantic's `ValidationError`."""
    return engine.options.model_validate(spec.engine.options)


def check_options(engine: Engine, spec: Spec) -> list[Problem]:
    """Faults in the engine's options."""
    try:
        parse_options(engine, spec)
    except ValidationError as error:
        return option_problems(engine, error)
    return []


def option_problems(engine: Engine, error: ValidationError) -> list[Problem]:
    """Pydantic's faults as the spec's problems."""
    from thrifty.spec.load import suggest

    problems = []
    for fault in error.errors():
        path = ".".join(["engine", *map(str, fault["loc"])])
        if fault["type"] == "extra_forbidden":
            known = list(engine.options.model_fields)
            hint = suggest(str(fault["loc"][-1]), known) if known else "it has none"
            message = f"is not an option of the engine {engine.kind!r}; {hint}"
        elif fault["type"] == "missing":
            message = f"is needed by the engine {engine.kind!r}"
        else:
            message = str(fault.get("ctx", {}).get("error", fault["msg"]))
        problems.append(Problem(path, message))
    return problems
