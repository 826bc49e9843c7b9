"""What `apply` would do, without doing it: fetch, prepare, start, stop, change.

Nothing is written: no folder is made, and the database is only read. Versions are prepared on a
store that is only looked at, so the plan finds what the preparation itself would find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from thrifty.artifacts import Artifact, NamedVersion
from thrifty.artifacts.look_only import LookOnlyStore, NotMadeYet
from thrifty.artifacts.sources import FoundModel, look_up_model
from thrifty.control.applied import AppliedSpec
from thrifty.control.auto import find_auto, put_auto
from thrifty.control.checks import (
    ModelMaker,
    check_aliases,
    check_labels,
    check_model,
    check_spec,
    check_verdict,
)
from thrifty.control.desired import make_served
from thrifty.control.differences import list_differences, list_gateway_differences
from thrifty.control.estimates import Estimates
from thrifty.control.merge import Held, find_fixed, merge
from thrifty.control.prepare import (
    Part,
    Prepared,
    default_label,
    describe_source,
    make_deployment,
    make_label,
    make_service,
)
from thrifty.control.replicas import Move, Running, list_moves
from thrifty.db.desired_state import DesiredDeployment, DesiredService
from thrifty.engines.base import Engine, Served, Upstream
from thrifty.engines.choice import list_installs
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine, find_engine
from thrifty.errors import Problem, SourceError
from thrifty.spec import LoadedSpec, LoadedVersion
from thrifty.types import Family, OnProgress, Progress, ignore_progress

UNKNOWN = "?"
"""The revision of what was not made yet; no revision that was made is so called."""
GATEWAYS_SEE_S = 0.5
"""Gateway workers know of a change after this long."""


@dataclass(frozen=True)
class PlanItem:
    """One thing that would be done."""

    what: str
    size_bytes: int | None
    """What would be downloaded, written or loaded; None where it is not known, or nothing is."""
    seconds: float | None
    """None where it is not known; `why` then says why."""
    why: str


@dataclass(frozen=True)
class Plan:
    """What would be done, in the order in which it is done."""

    fetch: tuple[PlanItem, ...] = ()
    choose: tuple[PlanItem, ...] = ()
    """What `auto` takes and why, or what will be measured to tell."""
    prepare: tuple[PlanItem, ...] = ()
    start: tuple[PlanItem, ...] = ()
    stop: tuple[PlanItem, ...] = ()
    change: tuple[PlanItem, ...] = ()
    held: tuple[Held, ...] = ()
    """What stays although the spec says otherwise."""
    fixed: tuple[Problem, ...] = ()
    """What the spec changes and `apply` would refuse; these are among `change`, too."""

    def to_builtins(self) -> dict[str, list[dict[str, Any]]]:
        """As JSON shows it."""
        return {
            name: [vars(item).copy() for item in getattr(self, name)]
            for name in ("fetch", "choose", "prepare", "start", "stop", "change")
        }


@dataclass(frozen=True)
class World:
    """What there is, as far as a plan depends on it."""

    deployments: Mapping[str, DesiredDeployment] = field(default_factory=dict)
    """The desired state now."""
    service: DesiredService | None = None
    applied: AppliedSpec | None = None
    running: Running = field(default_factory=Running)
    has_keys: bool | None = None
    """Whether there is an API key; None if it is not known."""
    gateway_pids: frozenset[int] = frozenset()
    """Gateway workers that run, also those that a killed controller left."""


def make_plan(
    loaded: LoadedSpec,
    world: World,
    store: LookOnlyStore,
    machine: Machine,
    on_progress: OnProgress = ignore_progress,
    *,
    maker: ModelMaker | None = None,
    reset: bool = False,
) -> Plan:
    """What applying the spec would do. Asks indexes and hubs for sizes. Blocks.

    Raises `SpecError` for what cannot be, `SourceError` where a model cannot be found, `ControlError`
    where no version would have traffic.
    """
    planner = _Planner(world, store, machine, Estimates(store, machine))
    each = check_spec(loaded, machine, maker)
    deployments: dict[str, DesiredDeployment] = {}
    for index, one in enumerate(each):
        on_progress(Progress("resolve", index, len(each), "deployments"))
        state = planner.plan_deployment(one)
        if state.name in deployments:
            loaded.refuse([Problem("name", f"{state.name!r} is the name of two deployments")])
        deployments[state.name] = state
    on_progress(Progress("resolve", len(each), len(each), "deployments"))
    check_aliases(loaded, deployments)
    prepared = Prepared(loaded, make_service(loaded, deployments, {}), deployments)
    merged = merge(
        world.applied.deployments if world.applied is not None else {},
        deployments, world.deployments, reset=reset,
    )  # fmt: skip
    moves = list_moves(prepared.service, merged.deployments, world.running)
    changes = planner.list_changes(prepared, merged.deployments)
    fixed: list[Problem] = []
    if world.running.alive and world.applied is not None:
        fixed = find_fixed(
            world.applied.fixed, prepared.applied.fixed, merged.deployments, world.deployments
        )
    changes += [PlanItem(one.path, None, None, one.message) for one in fixed]
    return Plan(
        tuple(planner.fetch), tuple(planner.choose), tuple(planner.prepare),
        tuple(planner.describe_start(move) for move in moves if move.count > 0),
        tuple(PlanItem(move.what, None, None, move.why) for move in moves if move.count < 0),
        tuple(changes), () if reset else merged.held, tuple(fixed),
    )  # fmt: skip


class _Planner:
    """Collects what has to be fetched and prepared, deployment by deployment."""

    def __init__(
        self, world: World, store: LookOnlyStore, machine: Machine, estimates: Estimates
    ) -> None:
        self.fetch: list[PlanItem] = []
        self.choose: list[PlanItem] = []
        self.prepare: list[PlanItem] = []
        self._world = world
        self._store = store
        self._machine = machine
        self._estimates = estimates
        self._found: dict[str, FoundModel] = {}

    def plan_deployment(self, one: LoadedSpec) -> DesiredDeployment:
        """The desired state that one deployment's spec comes to, as far as it is known."""
        resolved = [self._find(version) for version in one.versions()]
        versions = [version for version, *_ in resolved]
        found = [(engine, model) for _, engine, model in resolved]
        labels = [
            self._label(version, engine, model)
            for version, (engine, model) in zip(versions, found, strict=True)
        ]
        check_labels(one, list(zip(versions, labels, strict=True)))
        parts = [
            self._plan_version(version, engine, model, label)
            for version, (engine, model), label in zip(versions, found, labels, strict=True)
        ]
        return make_deployment(one, parts)

    def _find(self, version: LoadedVersion) -> tuple[LoadedVersion, Engine, FoundModel | None]:
        """The version with what `auto` comes to, which engine runs it, and what is known of its model."""
        spec, kind = version.loaded.spec, version.loaded.spec.engine.kind
        if kind != "auto" and not find_engine(kind).traits.loads_model:
            return version, find_engine(kind), None
        known = self._found.get(spec.model)
        if known is None:
            known = self._found[spec.model] = look_up_model(self._store, spec.model)
            if known.label is None:
                raise SourceError(f"the model {spec.model} cannot be fetched: {known.fault}")
            if known.stored is None:
                why = f"{spec.model} is not in the store"
                if known.fault:
                    why += f"; its size is not known: {known.fault}"
                why += "; how long it takes depends on the network"
                self.fetch.append(PlanItem(known.source, known.size_bytes, None, why))
        artifact = _as_artifact(known)
        if artifact is not None:
            version = self._resolve_auto(version, known, artifact)
        engine = choose_engine(version.loaded.spec.engine.kind, artifact)
        if artifact is not None:
            running = self._world.deployments if self._world.running.alive else {}
            check_model(version, engine, artifact, self._machine, running)
        if known.stored is not None:
            check_verdict(version, self._store, known.stored)
        return version, engine, known

    def _resolve_auto(
        self, version: LoadedVersion, found: FoundModel, artifact: Artifact
    ) -> LoadedVersion:
        """What `auto` takes, as far as it is known; what is unknown or new is noted."""
        spec = version.loaded.spec
        auto = find_auto(spec, self._store, artifact, self._machine)
        name = spec.name or (found.label or spec.model).partition("@")[0]
        if auto.choice is not None:
            what = f"{name}: {auto.choice.candidate}"
            self.choose.append(PlanItem(what, None, None, auto.choice.reason))
        if auto.to_measure is not None:
            listed = ", ".join(str(one) for one in auto.to_measure.able)
            told = [
                f"not measured here for this load: {listed}", *list_installs(auto.to_measure.able),
                "preparing and starting come on top",
            ]  # fmt: skip
            why = "; ".join(told)
            seconds: float | None = spec.benchmark
            if self._world.running.alive:
                seconds = None
                why = "not measured here for this load, nor while a service runs: the first by rank"
            self.choose.append(PlanItem(f"{name}: the fastest", None, seconds, why))
        return put_auto(version, auto)

    def _label(self, version: LoadedVersion, engine: Engine, model: FoundModel | None) -> str:
        if version.label is None and model is not None:
            return default_label(model.label or f"{version.loaded.spec.model}@v1")
        return make_label(version, engine, None, self._store, self._machine)

    def _plan_version(
        self, version: LoadedVersion, engine: Engine, found: FoundModel | None, label: str
    ) -> Part:
        spec, stored = version.loaded.spec, found.stored if found is not None else None
        name = f"{_default_name(version, found, label)}/{label}"
        source = describe_source(spec, stored)
        if spec.compress.is_pipeline:
            served = self._find_made(version, source, label)
            if served is None:
                self.prepare.append(_describe_pipeline(version, name))
                return self._guess(version, engine, found, label, source)
            return Part(version, engine, label, served, spec, source, engine.find_slots(served))
        artifact = _as_artifact(found) if found is not None else None
        if found is not None and artifact is None:
            why = "what it takes is known once the model is fetched"
            self.prepare.append(PlanItem(f"{name} for {engine.kind}", None, None, why))
            return self._guess(version, engine, found, label, source)
        try:
            model = (_as_version(found), artifact) if found is not None and artifact else None
            served = engine.prepare(spec, model, self._store, self._machine, ignore_progress)
        except NotMadeYet as missing:
            self._note_preparation(name, engine, missing.size_bytes)
            return self._guess(version, engine, found, label, source)
        return Part(version, engine, label, served, spec, source, engine.find_slots(served))

    def _note_preparation(self, name: str, engine: Engine, size: int | None) -> None:
        seconds, basis = self._estimates.prepare_s(engine.kind, size)
        self.prepare.append(
            PlanItem(
                f"{name} for {engine.kind}", size, seconds,
                f"the model was not prepared for {engine.kind} in this form yet; {basis}",
            )
        )  # fmt: skip

    def _find_made(self, version: LoadedVersion, source: str, label: str) -> Served | None:
        """What the same pipeline has made of the same model, where the last applied spec had it."""
        applied, name = self._world.applied, version.loaded.spec.name
        if applied is None:
            return None
        for deployment, state in applied.deployments.items():
            known = state.find_version(label)
            same = applied.sources.get(f"{deployment}/{label}") == source
            if known is None or known.artifact is None or not same:
                continue
            if name in (None, deployment) and self._store.has(known.artifact):
                return replace(make_served(state, known), version=known.model)
        return None

    def _guess(
        self,
        version: LoadedVersion,
        engine: Engine,
        found: FoundModel | None,
        label: str,
        source: str,
    ) -> Part:
        """What stands for a version whose model was not made yet."""
        spec, traits = version.loaded.spec, engine.traits
        known = found.description if found is not None else None
        there = self._world.deployments.get(spec.name or "")
        family = known.family.value if known is not None else there.family if there else None
        served = Served(
            _default_name(version, found, label), engine.kind, label, UNKNOWN, family or Family.DECODER.value,
            upstream=Upstream(priority_field=traits.priority_field, salt_field=traits.salt_field),
        )  # fmt: skip
        return Part(version, engine, label, served, spec, source, traits.default_slots)

    def describe_start(self, move: Move) -> PlanItem:
        """What would be started, with what it loads and how long that takes."""
        version = move.version
        if version is None or version.artifact is None or version.revision == UNKNOWN:
            return PlanItem(move.what, None, None, move.why)
        size = self._store.load(version.artifact).size_bytes
        seconds, basis = self._estimates.load_s(version.artifact, version.engine)
        return PlanItem(move.what, size * move.count, seconds, f"{move.why}; {basis}")

    def list_changes(
        self, prepared: Prepared, deployments: Mapping[str, DesiredDeployment]
    ) -> list[PlanItem]:
        """What changes without a start or a stop."""
        items = [
            PlanItem(what, None, GATEWAYS_SEE_S, why)
            for what, why in list_differences(self._world.deployments, deployments)
        ]
        running = {row.deployment for row in self._world.running.replicas}
        items += [
            PlanItem(f"{name}: removed", None, None, "the spec does not name it; its history stays")
            for name in self._world.deployments
            if name not in deployments and name not in running
        ]
        if self._world.service is not None and self._world.running.alive:
            items += [
                PlanItem(what, None, None, why)
                for what, why in list_gateway_differences(
                    self._world.service.gateway, prepared.service.gateway
                )
            ]
        return items


def _default_name(version: LoadedVersion, found: FoundModel | None, label: str) -> str:
    """The deployment's name: the spec's, or the model's own short name."""
    known = found.label if found is not None else None
    return version.loaded.spec.name or (known or label).partition("@")[0]


def _as_artifact(found: FoundModel) -> Artifact | None:
    """The model as an engine is asked about it; None where it is not known what it is."""
    if found.stored is not None:
        return found.stored[1]
    return None if found.description is None else Artifact("", found.description, ())


def _as_version(found: FoundModel) -> NamedVersion:
    if found.stored is not None:
        return found.stored[0]
    name, _, number = (found.label or "model@v1").rpartition("@v")
    return NamedVersion(name, int(number), "", "")


def _describe_pipeline(version: LoadedVersion, name: str) -> PlanItem:
    """One item for all stages: how long they take depends on the texts that they learn from."""
    compress = version.loaded.spec.compress
    scheme = compress.quantize.scheme
    steps = compress.prune.count_steps()
    stages = [
        *([f"prune and distill in {steps} steps"] if steps > 1 else []),
        *(["prune"] if compress.prune.is_wanted and steps == 1 else []),
        *(["distill"] if compress.distill.is_wanted and steps == 1 else []),
        *(["quantize (auto)"] if scheme == "auto" else []),
        *([f"quantize to {scheme}"] if scheme not in ("auto", "none") else []),
    ]
    why = (
        "the pipeline of this spec was not applied to this model before; stages that were made "
        "before are found, and how long the others take is not known"
    )
    return PlanItem(f"{name}: {', '.join(stages)}", None, None, why)
