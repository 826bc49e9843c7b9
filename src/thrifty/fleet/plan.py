"""From a spec to what is to be served: find the engine, fetch the model, check, prepare.

Whatever is impossible is refused here, before anything is started.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.sources import fetch_model
from thrifty.db.fleet import DeploymentRow, DeploymentSettings, VersionRow, VersionSettings
from thrifty.engines.base import Engine, Served
from thrifty.engines.machine import Machine
from thrifty.engines.registry import choose_engine, engine_kinds, find_engine
from thrifty.errors import Problem
from thrifty.spec import LoadedSpec, Spec
from thrifty.spec.load import suggest
from thrifty.types import OnProgress, ignore_progress

BATCH_SLOTS = 32
"""Beyond this, a replica on a CPU gives hardly more tokens, only later ones."""


class ModelMaker(Protocol):
    """Makes the models that specs ask for and no engine makes by itself."""

    def check(self, loaded: LoadedSpec) -> None:
        """Refuse what can be refused before anything is fetched. Raises `SpecError`."""
        ...

    def make(
        self, loaded: LoadedSpec, model: tuple[NamedVersion, Artifact], on_progress: OnProgress
    ) -> tuple[Spec, tuple[NamedVersion, Artifact]]:
        """What is to be served in place of `model`, and as what. Blocks."""
        ...


@dataclass(frozen=True)
class Plan:
    """A spec that can be carried out, and all that it comes to."""

    spec: Spec
    engine: Engine
    served: Served

    @property
    def deployment(self) -> DeploymentRow:
        """The deployment, as gateways read it."""
        served, spec = self.served, self.spec
        traits, upstream = self.engine.traits, served.upstream
        honours = traits.honours
        version = VersionRow(
            label=served.version,
            model=served.version,
            engine=served.engine,
            revision=served.revision,
            artifact=served.artifact,
            settings=VersionSettings(
                honours=None if honours is None else tuple(sorted(honours)),
                upstream_model=upstream.model,
                key_env=upstream.key_env,
                salt_field=upstream.salt_field,
                priority_field=upstream.priority_field,
                load_path=traits.load_path,
                accepts_response_id=traits.accepts_response_id,
                batch_slots=_count_batch_slots(spec, self.engine.find_slots(served)),
                slots=spec.replicas.slots or self.engine.find_slots(served),
                price_input=spec.prices.input,
                price_cached=_first(spec.prices.cached_input, spec.prices.input),
                price_output=spec.prices.output,
            ),
        )
        settings = DeploymentSettings(
            routing=spec.routing,
            cache_when=spec.cache.exact.when,
            cache_ttl_s=spec.cache.exact.ttl,
            max_tokens=spec.limits.max_tokens,
            waiting=spec.limits.waiting,
            wait_timeout_s=spec.limits.wait_timeout,
            first_token_timeout_s=spec.limits.first_token_timeout,
            idle_timeout_s=spec.limits.idle_timeout,
            created_s=time.time(),
            timeout_s=spec.limits.timeout,
            hedge_s=spec.limits.hedge,
            aliases=spec.aliases,
            fallback=spec.fallback,
        )
        return DeploymentRow(served.name, served.family, settings, (version,))


def _count_batch_slots(spec: Spec, limit: int | None) -> int:
    """How many requests a replica works on at once, as far as batches go."""
    wanted = spec.batches.slots or BATCH_SLOTS
    return min(wanted, limit) if limit else wanted


def make_plans(
    loaded: LoadedSpec,
    store: Store,
    machine: Machine,
    on_progress: OnProgress = ignore_progress,
    *,
    maker: ModelMaker,
) -> list[Plan]:
    """A plan for each deployment of the spec; `maker` compresses models where that is asked for.
    Blocks. Raises `ThriftyError` and its kinds.
    """
    if loaded.spec.redis and find_spec("redis") is None:
        loaded.refuse([Problem("redis", "needs its client: pip install 'thrifty[redis]'")])
    each = loaded.each()
    for one in each:
        # Whatever can be refused at once is, before the first long download.
        check_engine(one, machine)
        if one.spec.compress.is_pipeline:
            _check_loads_models(one)
            maker.check(one)
    # What can be refused once models are known is, before the first is compressed for hours.
    found = [(one, *_find_model(one, store, machine, on_progress)) for one in each]
    plans = [
        _make_plan(one, engine, model, store, machine, on_progress, maker)
        for one, engine, model in found
    ]
    names = [plan.served.name for plan in plans]
    taken = {name for name in names if names.count(name) > 1}
    taken |= {
        a for plan in plans for a in plan.spec.aliases if a in names and a != plan.served.name
    }
    if taken:
        loaded.refuse([Problem("name", f"{sorted(taken)[0]!r} is the name of two deployments")])
    return plans


def check_engine(loaded: LoadedSpec, machine: Machine) -> None:
    """Refuse an engine that is not there, and options that it cannot take here. Raises `SpecError`."""
    spec, kind = loaded.spec, loaded.spec.engine.kind
    if kind == "auto":
        return
    if kind not in engine_kinds():
        hint = suggest(kind, ["auto", *engine_kinds()])
        loaded.refuse([Problem("engine.kind", f"{kind!r} is not an engine; {hint}")])
    loaded.refuse(find_engine(kind).check(spec, None, machine))


def _check_loads_models(loaded: LoadedSpec) -> None:
    kind = loaded.spec.engine.kind
    if kind != "auto" and not find_engine(kind).traits.loads_model:
        message = (
            f"the engine {kind!r} loads no model, so there is nothing to compress; write it beside the "
            "deployments that it is for"
        )
        loaded.refuse([Problem("compress", message)])


def _find_model(
    loaded: LoadedSpec, store: Store, machine: Machine, on_progress: OnProgress
) -> tuple[Engine, tuple[NamedVersion, Artifact] | None]:
    """Fetch what one deployment asks for, and say which engine runs it. Raises `SpecError` too."""
    spec, kind = loaded.spec, loaded.spec.engine.kind
    if kind != "auto" and not find_engine(kind).traits.loads_model:
        return find_engine(kind), None
    model = fetch_model(store, spec.model, on_progress=on_progress)
    store.verify(model[1], on_progress=on_progress)
    engine = choose_engine(kind, model[1])
    loaded.refuse(engine.check(spec, model[1], machine))
    return engine, model


def _make_plan(
    loaded: LoadedSpec,
    engine: Engine,
    model: tuple[NamedVersion, Artifact] | None,
    store: Store,
    machine: Machine,
    on_progress: OnProgress,
    maker: ModelMaker,
) -> Plan:
    """Compress and prepare what one deployment asks for."""
    spec = loaded.spec
    if model is not None and spec.compress.is_pipeline:
        spec, model = maker.make(loaded, model, on_progress)
    served = engine.prepare(spec, model, store, machine, on_progress)
    if served.artifact is not None:
        store.verify(store.load(served.artifact), on_progress=on_progress)
    return Plan(spec, engine, served)


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
