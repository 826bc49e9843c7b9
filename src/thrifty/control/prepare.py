"""From a spec to the desired state that it comes to: fetch, compress, prepare.

Whatever is impossible (an engine that is not there, a format it cannot load, memory that is not
there) is refused with its line before anything is started. What comes out names artifacts in the
store and is complete: nothing has to be looked up again to carry it out. `control.plan` says what
this would do without doing it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from thrifty.artifacts import Store
from thrifty.artifacts.remotes.prepared import (
    BackedStore,
    ProcessorKind,
    find_remote_source,
    share_prepared,
)
from thrifty.artifacts.sources import fetch_model
from thrifty.control.alerting import describe_alerts
from thrifty.control.applied import AppliedSpec, describe_fixed, describe_written
from thrifty.control.auto import resolve_auto
from thrifty.control.checks import (
    Deployments,
    Model,
    ModelMaker,
    check_aliases,
    check_families,
    check_labels,
    check_model,
    check_spec,
    check_verdict,
)
from thrifty.control.estimates import PREPARE, record_times
from thrifty.control.gateway_settings import describe_gateway
from thrifty.control.machine_price import find_machine_price
from thrifty.control.token_prices import find_token_prices
from thrifty.data.sets import SETS
from thrifty.db.desired_state import (
    DesiredCapacity,
    DesiredChecks,
    DesiredDeployment,
    DesiredQuality,
    DesiredReplicas,
    DesiredService,
    DesiredSlo,
    DesiredVersion,
)
from thrifty.db.fleet import DeploymentSettings, VersionSettings
from thrifty.engines.base import Engine, Served
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine, find_engine
from thrifty.engines.server import KEY_VARIABLE
from thrifty.errors import EvaluationError, Problem
from thrifty.evaluate.questions import read_questions
from thrifty.spec import LoadedSpec, LoadedVersion, Spec
from thrifty.spec.fleet import DEFAULT_CPUS
from thrifty.spec.judges import RemoteJudge
from thrifty.spec.scaling import IDLE_AFTER_S
from thrifty.spec.section import MAX_LABEL
from thrifty.types import Family, OnProgress, ignore_progress

BATCH_SLOTS = 32
"""Beyond this, a replica on a CPU gives hardly more tokens, only later ones."""


@dataclass(frozen=True)
class Prepared:
    """What a spec comes to by itself, ready to be applied."""

    loaded: LoadedSpec
    service: DesiredService
    deployments: dict[str, DesiredDeployment]
    """In the order of the spec."""

    @property
    def applied(self) -> AppliedSpec:
        """What the service's state keeps of it."""
        return msgspec.convert(self.service.spec, AppliedSpec)


@dataclass(frozen=True)
class Part:
    """One version of a spec, as far as it is known."""

    version: LoadedVersion
    engine: Engine
    label: str
    served: Served
    spec: Spec
    """The spec that it was prepared by; a pipeline changes its section `compress`."""
    source: str
    """See `AppliedSpec.sources`."""
    slots: int | None
    """How many requests a replica runs at once, as its engine says."""


def prepare(
    loaded: LoadedSpec,
    store: Store,
    machine: Machine,
    on_progress: OnProgress = ignore_progress,
    *,
    maker: ModelMaker,
    running: Deployments | None = None,
) -> Prepared:
    """Fetch, compress and prepare whatever the spec asks for; `maker` runs pipelines.

    `running` is what runs here already, so that its memory is not asked for twice. Blocks. Raises
    `ThriftyError` and its kinds.
    """
    each = check_spec(loaded, machine, maker)
    # What can be refused once models are known is, before the first is compressed for hours.
    found = [
        [
            _find_model(version, store, machine, on_progress, maker, running or {})
            for version in one.versions()
        ]
        for one in each
    ]
    for one, versions in zip(each, found, strict=True):
        check_families(one, [m[1].description.family if m else None for _, _, m in versions])
    deployments: dict[str, DesiredDeployment] = {}
    sources: dict[str, str] = {}
    for one, versions in zip(each, found, strict=True):
        check_labels(
            one,
            [(v, make_label(v, engine, model, store, machine)) for v, engine, model in versions],
        )
        parts = [
            _make_part(version, engine, model, store, machine, on_progress, maker)
            for version, engine, model in versions
        ]
        state = make_deployment(one, parts)
        if state.name in deployments:
            loaded.refuse([Problem("name", f"{state.name!r} is the name of two deployments")])
        deployments[state.name] = state
        sources |= {f"{state.name}/{part.label}": part.source for part in parts}
    check_aliases(loaded, deployments)
    return Prepared(loaded, make_service(loaded, deployments, sources), deployments)


def make_label(
    version: LoadedVersion, engine: Engine, model: Model | None, store: Store, machine: Machine
) -> str:
    """The label that the spec gives, or the model's `name@vN`, or what an engine without models of
    ours calls what it serves.
    """
    if version.label is not None:
        return version.label
    if model is not None:
        return default_label(model[0].label)
    served = engine.prepare(version.loaded.spec, None, store, machine, ignore_progress)
    return default_label(served.version)


def default_label(name: str) -> str:
    """`name@vN` as a label: a long name is cut, its version is not."""
    if len(name) <= MAX_LABEL:
        return name
    base, _, number = name.rpartition("@")
    return f"{base[: MAX_LABEL - len(number) - 1]}@{number}"


def _find_model(
    version: LoadedVersion,
    store: Store,
    machine: Machine,
    on_progress: OnProgress,
    maker: ModelMaker,
    running: Deployments,
) -> tuple[LoadedVersion, Engine, Model | None]:
    """Fetch what one version asks for, and say which engine runs it; the version with what `auto`
    came to. Raises `SpecError` too.
    """
    kind = version.loaded.spec.engine.kind
    if kind != "auto" and not find_engine(kind).traits.loads_model:
        return version, find_engine(kind), None
    model = fetch_model(store, version.loaded.spec.model, on_progress=on_progress)
    store.verify(model[1], on_progress=on_progress)
    check_verdict(version, store, model)
    version = resolve_auto(version, model, store, machine, maker, running, on_progress)
    engine = choose_engine(version.loaded.spec.engine.kind, model[1])
    check_model(version, engine, model[1], machine, running)
    return version, engine, model


def _make_part(
    version: LoadedVersion,
    engine: Engine,
    model: Model | None,
    store: Store,
    machine: Machine,
    on_progress: OnProgress,
    maker: ModelMaker,
) -> Part:
    """Compress and prepare what one version asks for."""
    spec = version.loaded.spec
    label = make_label(version, engine, model, store, machine)
    source = describe_source(spec, model)
    if model is not None and spec.compress.is_pipeline:
        spec, model = maker.make(version.loaded, model, on_progress)
        check_verdict(version, store, model)
    before = {known.artifact for known in store.versions()}
    began_s = time.monotonic()
    backed = _back(store, engine, model, machine, on_progress)
    served = engine.prepare(spec, model, backed or store, machine, on_progress)
    took_s = time.monotonic() - began_s
    if served.artifact is not None:
        store.verify(store.load(served.artifact), on_progress=on_progress)
        pulled = backed is not None and served.artifact in backed.pulled
        if served.artifact not in before and not pulled:
            values = {"seconds": round(took_s, 3)}
            record_times(store, machine, PREPARE, served.artifact, engine.kind, values)
        if backed is not None and model is not None and spec.share:
            share_prepared(backed, model[1].id, served.artifact)
    return Part(version, engine, label, served, spec, source, engine.find_slots(served))


def _back(
    store: Store, engine: Engine, model: Model | None, machine: Machine, on_progress: OnProgress
) -> BackedStore | None:
    """The store with the remote behind it that a model came from; None if it came from elsewhere."""
    source = find_remote_source(model[0]) if model is not None else None
    if source is None:
        return None
    kind = ProcessorKind(
        machine.architecture, engine.find_features(machine), engine.traits.find_version()
    )
    return BackedStore(store.root, source, kind, on_progress)


def describe_source(spec: Spec, model: Model | None) -> str:
    """A checksum over what a version is made from."""
    compress = spec.compress.model_dump(mode="json", exclude={"accept", "max_drop"})
    text = json.dumps([model[1].id if model is not None else None, compress], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_deployment(loaded: LoadedSpec, parts: Sequence[Part]) -> DesiredDeployment:
    """One deployment's desired state, as its spec alone says it. Raises `SpecError`."""
    first = parts[0]
    check_families(loaded, [Family(part.served.family) for part in parts])
    state = DesiredDeployment(
        name=loaded.spec.name or first.served.name,
        family=str(first.served.family),
        settings=_make_settings(loaded.spec),
        versions=tuple(_make_version(part) for part in parts),
        quality=_make_quality(loaded),
        improve=_make_improve(loaded),
        checks=_make_checks(loaded),
    )
    # As it will be read: tuples are lists, numbers are as JSON has them.
    return msgspec.json.decode(msgspec.json.encode(state), type=DesiredDeployment)


def make_service(
    loaded: LoadedSpec, deployments: Deployments, sources: Mapping[str, str]
) -> DesiredService:
    """What all deployments share."""
    applied = AppliedSpec(
        written=describe_written(loaded.spec),
        fixed=describe_fixed(loaded.spec),
        deployments=deployments,
        sources=sources,
    )
    # What a deployment says of the gateway's limits and memory holds as the first one says it.
    gateway = describe_gateway(loaded.each()[0].spec)
    bounds, price = loaded.spec.capacity, find_machine_price(loaded)
    capacity = DesiredCapacity(
        bounds.cpus, bounds.gpus, bounds.memory, bounds.per_hour,
        loaded.spec.price_per_hour if price.per_hour is None else price.per_hour,
        price.per_hour, price.basis,
    )  # fmt: skip
    made = DesiredService(
        gateway,
        applied.to_builtins(),
        capacity,
        _make_records(loaded.spec),
        _list_budgets(loaded, deployments),
        loaded.spec.fleet.describe(),
        describe_alerts(loaded.spec.alerts),
        loaded.spec.record.encrypt.source,
    )
    return msgspec.json.decode(msgspec.json.encode(made), type=DesiredService)


def _make_records(spec: Spec) -> dict[str, float]:
    """How long sums are kept, as `observe.rollups.roll.Keep`."""
    keep = spec.record.keep
    return {
        "minutes_s": keep.minutes, "hours_s": keep.hours, "days_s": keep.days,
        "tenants": spec.record.tenants,
    }  # fmt: skip


def _list_budgets(loaded: LoadedSpec, names: Iterable[str]) -> dict[str, float]:
    """What a month may cost, by deployment; `names` are in the order of the spec."""
    found = {
        name: one.spec.budget_month
        for name, one in zip(names, loaded.each(), strict=False)
        if one.spec.budget_month is not None
    }
    if loaded.spec.budget_all_month is not None:
        found[""] = loaded.spec.budget_all_month
    return found


def _make_settings(spec: Spec) -> DeploymentSettings:
    return DeploymentSettings(
        routing=spec.routing,
        cache_when=spec.cache.exact.when,
        cache_ttl_s=spec.cache.exact.ttl,
        max_tokens=spec.limits.max_tokens,
        waiting=spec.limits.waiting,
        wait_timeout_s=spec.limits.wait_timeout,
        wake_timeout_s=spec.limits.wake_timeout,
        waiting_bytes=spec.limits.waiting_bytes,
        keep_alive_s=spec.limits.keep_alive,
        first_token_timeout_s=spec.limits.first_token_timeout,
        idle_timeout_s=spec.limits.idle_timeout,
        created_s=time.time(),
        timeout_s=spec.limits.timeout,
        hedge_s=spec.limits.hedge,
        aliases=spec.aliases,
        fallback=spec.fallback,
        priority=spec.priority,
    )


def _make_quality(loaded: LoadedSpec) -> DesiredQuality | None:
    """The canary questions. Raises `SpecError` for a file that holds none with known answers."""
    wanted = loaded.spec.quality
    questions = wanted.questions
    if questions is None:
        return None
    if questions not in SETS:
        path = Path(questions).absolute()
        try:
            found = read_questions(path, wanted.count)
        except EvaluationError as error:
            named = ", ".join(sorted(SETS))
            message = f"{error}; give a file of questions, or one of the sets {named}"
            loaded.refuse([Problem("quality.questions", message)])
        if not any(question.answers for question in found):
            message = f"{path} holds no question with 'answers'"
            loaded.refuse([Problem("quality.questions", message)])
        questions = str(path)
    return DesiredQuality(questions, wanted.every, wanted.count)


def _make_improve(loaded: LoadedSpec) -> dict[str, Any] | None:
    """The loop, if the spec asks for it."""
    if "improve" not in loaded.spec.model_fields_set:
        return None
    return loaded.spec.improve.model_dump(mode="json", exclude_unset=True)


def _make_checks(loaded: LoadedSpec) -> DesiredChecks:
    """What is looked at in recorded answers. Raises `SpecError` for a judge without texts to read."""
    wanted = loaded.spec.quality
    for name in ("judge", "encoder"):
        if getattr(wanted, name) is not None and not loaded.spec.record.prompts:
            message = (
                f"it reads recorded answers; set 'record: {{prompts: true}}', or name no {name}"
            )
            loaded.refuse([Problem(f"quality.{name}", message)])
    judge = wanted.judge
    named = judge.model_dump(mode="json") if isinstance(judge, RemoteJudge) else judge
    return DesiredChecks(
        wanted.answers, named, wanted.judge_share, wanted.judge_per_hour, wanted.encoder
    )


def _make_version(part: Part) -> DesiredVersion:
    spec, served = part.spec, part.served
    return DesiredVersion(
        label=part.label,
        model=served.upstream.model or served.version,
        engine=served.engine,
        revision=served.revision,
        artifact=served.artifact,
        options=dict(served.options),
        urls=tuple(served.upstream.urls),
        weight=part.version.weight,
        shadow=part.version.shadow,
        settings=_make_version_settings(part),
        replicas=_make_replicas(part),
        slo=DesiredSlo(spec.slo.ttft_p95, spec.slo.tpot_p95),
        image=spec.engine.image,
    )


def _make_replicas(part: Part) -> DesiredReplicas:
    """How many copies, at first and at most, and what each may use."""
    replicas = part.spec.replicas
    elsewhere = part.spec.fleet.kind != "local"
    common = DesiredReplicas(
        count=replicas.fewest,
        cpus=replicas.cpus or (DEFAULT_CPUS if elsewhere else None),
        gpus=replicas.gpus or 0,
        memory_limit_bytes=replicas.memory_limit,
        start_timeout_s=replicas.start_timeout,
    )
    if replicas.bounds is None:
        return common
    fewest, most = replicas.bounds
    idle_after_s = (replicas.idle_after or IDLE_AFTER_S) if fewest == 0 else None
    if replicas.standby == "parked" and not part.engine.traits.parks:
        message = (
            f"asks for 'parked', and the engine {part.engine.kind!r} cannot keep a copy idle with "
            "less memory; leave it out"
        )
        part.version.loaded.refuse([Problem("replicas.standby", message)])
    if replicas.standby == "cached" and not part.engine.traits.loads_model:
        message = (
            f"asks for 'cached', and the engine {part.engine.kind!r} loads no model that could be kept "
            "in the page cache; leave it out"
        )
        part.version.loaded.refuse([Problem("replicas.standby", message)])
    return replace(
        common, min_count=fewest, max_count=most, idle_after_s=idle_after_s,
        standby=replicas.standby,
    )  # fmt: skip


def _make_version_settings(part: Part) -> VersionSettings:
    traits, upstream = part.engine.traits, part.served.upstream
    spec, slots = part.spec, part.slots
    # Replicas beyond this machine answer only who has their key.
    with_key = spec.fleet.kind != "local" and not traits.external
    wanted = spec.batches.slots or BATCH_SLOTS
    prices = find_token_prices(part.version.loaded)
    return VersionSettings(
        honours=None if traits.honours is None else tuple(sorted(traits.honours)),
        upstream_model=upstream.model,
        key_env=KEY_VARIABLE if with_key else upstream.key_env,
        salt_field=upstream.salt_field,
        priority_field=upstream.priority_field,
        takes_stream_options=upstream.takes_stream_options,
        on_demand=upstream.on_demand,
        accepts_response_id=traits.accepts_response_id,
        load_path=None if with_key else traits.load_path,
        slots=spec.replicas.slots or slots,
        batch_slots=min(wanted, slots) if slots else wanted,
        context_length=part.served.context_length,
        wakes=spec.replicas.bounds is not None and spec.replicas.fewest == 0,
        price_input=prices.input,
        price_cached=prices.input if prices.cached_input is None else prices.cached_input,
        price_output=prices.output,
        ttft_objective_s=spec.slo.ttft_p95,
        tpot_objective_s=spec.slo.tpot_p95,
    )
