"""The interface between an engine and the rest of Thrifty: an adapter and its declared traits.

An adapter says what its engine can load and do on a machine, prepares a model, gives the command
that starts a server, tells when that server is ready and reads its load. It runs nothing by itself,
so the same adapter serves every fleet. `Traits` holds the facts that other layers decide by: no
code outside an engine's folder asks which engine it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any, Literal, Protocol

import msgspec
from pydantic import ValidationError

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.engines.environments import Environment
from thrifty.engines.machine import Machine
from thrifty.errors import EngineError, Problem
from thrifty.home import Home
from thrifty.openai.fields import ANSWERED, Endpoint, Narrowed
from thrifty.spec import Spec
from thrifty.spec.section import Section
from thrifty.types import Family, Format, OnProgress

Speculation = Literal["none", "prompt_lookup", "draft", "auto"]
"""Ways of guessing several tokens ahead, which one step of the model then checks: what followed the
same words before, or what a smaller model says. All engines call them so. `auto` is what the benchmark
of the spec's load takes, and `none` where nothing was measured.
"""
DEFAULT_KV_BYTES = 256 << 20
"""Planned for a KV cache whose size nobody names: the engine takes what is left of the memory."""
MEMORY_PATHS = ("replicas.count", "engine.kv_cache")
"""Problems of memory: a version that runs already needs no more of it."""


@dataclass(frozen=True)
class WeightScheme:
    """A form of the weights that an engine makes from a checkpoint and runs."""

    bytes_per_weight: float
    """On average over a model, with scales, for estimates of memory."""
    needs_one_of: frozenset[str] = frozenset()
    """Processor features, by the names in `machine.FEATURES`, of which it needs one to compute
    correctly. Empty: it is correct on every processor that the engine supports.
    """
    needs_reason: str = ""
    """What goes wrong without them."""
    fallback: str | None = None
    """The scheme to take where they are missing."""

    def runs_on(self, features: frozenset[str]) -> bool:
        """Whether it computes correctly on a processor with `features`."""
        return not self.needs_one_of or bool(self.needs_one_of & features)


@dataclass(frozen=True)
class SchemeDefault:
    """The scheme to take on a kind of processor, and what is known of its speed there."""

    scheme: str
    reason: str


@dataclass(frozen=True)
class TunableOption:
    """An option that a search may try other values of."""

    values: tuple[Any, ...]
    """Those worth trying, the default first."""
    changes_answers: bool = False
    """Whether answers may differ between them, so that each must be judged by itself."""
    bounds_requests: bool = False
    """Whether it bounds the requests that run at once: a bound above the load changes nothing."""


@dataclass(frozen=True)
class Traits:
    """What an engine declares about itself; nothing here depends on a machine or a model."""

    formats: frozenset[Format] = frozenset()
    """Formats of models that it loads, or prepares for itself."""
    families: frozenset[Family] = frozenset()
    schemes: Mapping[str, WeightScheme] = field(default_factory=dict)
    """The forms of weights that it makes and runs, by the name that specs use."""
    auto_schemes: tuple[str, ...] = ()
    """The schemes that `compress: auto` chooses from, from the smallest to the largest."""
    lossy_schemes: tuple[str, ...] = ()
    """Smaller ones, which can cost so much quality that `compress: auto` measures them and takes them
    only where the spec accepts that.
    """
    tunable: Mapping[str, TunableOption] = field(default_factory=dict)
    """The options that decide how fast it is here, by name; `thrifty optimize` tries their values."""
    auto_rank: int | None = None
    """Its place among the engines that `auto` chooses from, lowest first; None: only by name."""
    find_absence: Callable[[], str | None] | None = None
    """Why `auto` leaves it out here for now, such as that it is not installed; None: nothing does."""
    find_install: Callable[[], str | None] | None = None
    """What is installed on first use, with its size; None once it is there."""
    loads_model: bool = True
    """Whether it needs a model from the store."""
    external: bool = False
    """Whether others run its servers: they are used, but not started or stopped."""
    default_slots: int | None = None
    """How many requests a replica runs at once by default; None where that is not known."""
    honours: frozenset[str] | None = None
    """Request fields that it honours; None where only the server knows."""
    narrowed: Narrowed = field(default_factory=dict)
    """Those that it honours in part, with the values that it takes."""
    salt_field: str | None = None
    """The request field that separates tenants in its prefix cache (vLLM: `cache_salt`). Without
    one, tenants of a replica share cached prefixes.
    """
    priority_field: str | None = None
    """The request field by which lines of batches give way to other requests."""
    tokenizes: bool = False
    """Whether its servers answer `/tokenize`."""
    load_path: str | None = None
    """Where its servers report `active_requests` and their load as JSON; None: they do not."""
    accepts_response_id: bool = False
    """Whether its servers take the id of the response from the header `x-request-id`."""
    parks: bool = False
    """Whether a replica that nobody asks can be kept loaded with less memory (`ParkingEngine`)."""
    speculation: frozenset[Speculation] = frozenset()
    """The ways of guessing tokens ahead that its option `speculation` takes, beside `none`."""
    adapters: bool = False
    """Whether it serves a LoRA adapter beside its base. Others get the adapter merged into it."""
    find_kv_bytes: Callable[[Mapping[str, Any], Artifact, Store], int | None] | None = None
    """What the KV cache of a replica takes, by the engine's options (given or resolved), the model, or
    what was prepared from it, and the store, which may not have its files. None, or where it gives
    none: the option `kv_cache`.
    """
    local_options: frozenset[str] = frozenset()
    """Options that name what is on one machine alone: paths, and models in its store."""
    count_gpus: Callable[[Mapping[str, Any]], int] | None = None
    """Over how many GPUs a replica is spread on a machine that has some, by the engine's resolved
    options; None: it uses none.
    """
    runtime_bytes: int = 0
    """Memory of a replica beyond weights and KV cache: libraries and buffers."""
    package: str | None = None
    """The Python package whose version measurements name."""
    find_environment: Callable[[Home], Environment] | None = None
    """Where its packages are, or will be installed; None where they come with Thrifty."""
    pinned_version: str | None = None
    """Its version, where it is installed in an environment of its own."""

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints that its servers answer, with a model of the right family."""
        found = {endpoint for family in self.families for endpoint in ANSWERED[family]}
        return frozenset(found | {Endpoint.TOKENIZE} if self.tokenizes else found)

    @property
    def comes_with_thrifty(self) -> bool:
        """Whether its packages are in Thrifty's own environment."""
        if self.find_environment is None or self.package is None:
            return self.find_environment is None
        try:
            return package_version(self.package) == self.pinned_version
        except PackageNotFoundError:
            return False

    def find_version(self) -> str:
        """The version of `package` that it uses, or an empty string."""
        if self.pinned_version is not None:
            return self.pinned_version
        try:
            return package_version(self.package) if self.package else ""
        except PackageNotFoundError:
            return ""


@dataclass(frozen=True)
class Capability:
    """One line of what an engine can do on a machine. `reason` says why not, or what it gives."""

    what: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Upstream:
    """How a gateway has to speak to the servers of a deployment."""

    urls: tuple[str, ...] = ()
    """The servers that others run; empty where a fleet starts them."""
    model: str | None = None
    """What the servers call the model, where that is another name."""
    key_env: str | None = None
    """The environment variable that holds the servers' API key."""
    salt_field: str | None = None
    priority_field: str | None = None
    takes_stream_options: bool = True
    """Whether the gateway may ask for the token counts of every stream."""
    on_demand: bool = False
    """Whether others start the servers when requests wait."""


@dataclass(frozen=True)
class Served:
    """What a replica serves: everything that a fleet needs to start one, as plain data.

    It names the model's files by the artifact's id. Whoever starts a replica finds them in the
    store that it has.
    """

    name: str
    """What clients write in `model`."""
    engine: str
    version: str
    """The version's label, as metrics and headers show it."""
    revision: str
    """Changes whenever an answer could: with the model's bytes, the engine or its options."""
    family: str
    artifact: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """The engine's options without any `auto`: values of JSON."""
    upstream: Upstream = field(default_factory=Upstream)
    context_length: int | None = None
    """The longest prompt and answer together, in tokens; None where only the server knows."""

    def to_json(self) -> bytes:
        """As JSON. Raises `TypeError` where an option is no value of JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes | str) -> Served:
        """What `to_json` wrote. Raises `msgspec.ValidationError`."""
        return msgspec.json.decode(text, type=cls)


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


@dataclass(frozen=True)
class Examined:
    """How a server that others run was found."""

    fault: str | None = None
    """Why it is not ready; None when it is."""
    remark: str | None = None
    """What its operator should know although it is ready."""


class Engine(Protocol):
    """An adapter. See the module's docstring."""

    @property
    def kind(self) -> str:
        """The name that specs use."""
        ...

    @property
    def options(self) -> type[Section]:
        """The model of its options in the spec."""
        ...

    @property
    def traits(self) -> Traits:
        """What it declares about itself."""
        ...

    def find_features(self, machine: Machine) -> frozenset[str]:
        """The features of the processor that it uses: all, unless it was limited to fewer."""
        ...

    def find_default_scheme(self, machine: Machine) -> SchemeDefault:
        """What `compress: auto` takes on such a machine where nothing was measured."""
        ...

    def find_processor_fault(self, artifact: Artifact, machine: Machine) -> str | None:
        """Why a prepared model would be computed wrongly on `machine`, and what to do; None if not."""
        ...

    def capabilities(self, machine: Machine) -> list[Capability]:
        """What it can load and do on `machine`."""
        ...

    def check(self, spec: Spec, artifact: Artifact | None, machine: Machine) -> list[Problem]:
        """Why this spec cannot be served here; empty if it can. `artifact` is None where the engine
        loads no model, or before it is known.
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
        """Make the model ready to be loaded. Later calls find what the first one made. Blocks."""
        ...

    def find_prepared(self, artifact: Artifact, scheme: str, store: Store) -> Artifact | None:
        """The files that it runs for `artifact` with weights in `scheme`; None if not made yet."""
        ...

    def launch(
        self, served: Served, store: Store, port: int, cores: Sequence[int], memory_share: float
    ) -> Launch:
        """The command of a server on loopback `port`, using `cores` and that share of memory.
        `store` holds the model's files.
        """
        ...

    def find_slots(self, served: Served) -> int | None:
        """How many requests a replica runs at once with these options before others wait; None
        where that is not known.
        """
        ...

    async def probe(self, url: str, served: Served, *, deep: bool) -> str | None:
        """Why the server at `url` is not ready; None when it is. `deep` has it generate a token."""
        ...

    async def read_load(self, url: str) -> EngineLoad:
        """How busy the server at `url` is."""
        ...


class ParkingEngine(Engine, Protocol):
    """An adapter whose servers can be parked (`Traits.parks`)."""

    async def park(self, url: str) -> None:
        """Have the server at `url` give back what memory it can. It answers as before, and takes
        the memory again when it needs it. Raises `TransportError`.
        """
        ...


class ExternalEngine(Engine, Protocol):
    """An adapter for servers that others run (`Traits.external`)."""

    async def examine(self, url: str, served: Served) -> Examined:
        """How the server at `url` is."""
        ...


def find_scheme_fault(
    schemes: Mapping[str, WeightScheme], weights: str, features: frozenset[str]
) -> str | None:
    """Why weights in this scheme would be computed wrongly on a processor with `features`; None if
    they are not. A scheme that is not in `schemes` is another check's business.
    """
    scheme = schemes.get(weights)
    if scheme is None or scheme.runs_on(features):
        return None
    return f"weights in {weights} need a newer processor: {scheme.needs_reason}"


def choose_runnable(
    schemes: Mapping[str, WeightScheme], wanted: str, features: frozenset[str]
) -> str:
    """`wanted`, or what takes its place on such a processor. Raises `EngineError` if nothing does."""
    fault = find_scheme_fault(schemes, wanted, features)
    if fault is None:
        return wanted
    fallback = schemes[wanted].fallback
    if fallback is None:
        raise EngineError(fault)
    return choose_runnable(schemes, fallback, features)


def parse_options(engine: Engine, spec: Spec) -> Any:
    """The engine's options in `spec`, as its own model. Raises pydantic's `ValidationError`."""
    return engine.options.model_validate(spec.engine.options)


def count_kv_bytes(
    engine: Engine, options: Mapping[str, Any], artifact: Artifact, store: Store
) -> int:
    """The memory to plan for the KV cache of a replica, in bytes. `options` are valid ones. Blocks."""
    find = engine.traits.find_kv_bytes
    found = find(options, artifact, store) if find is not None else None
    return found or options.get("kv_cache") or DEFAULT_KV_BYTES


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
