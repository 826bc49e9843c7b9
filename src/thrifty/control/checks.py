"""What a spec asks for that cannot be, refused with its line before anything is started."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.remotes import is_reference, parse_reference
from thrifty.artifacts.verdicts import find_failure
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.sealed_text import parse_source, read_keys
from thrifty.engines.base import MEMORY_PATHS, Engine
from thrifty.engines.choice import Choice
from thrifty.engines.machine import Machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.errors import (
    FleetError,
    GateError,
    Problem,
    RemoteError,
    SpecError,
    TextKeyError,
    ThriftyError,
)
from thrifty.http.certificates import load_gateway_side
from thrifty.http.tls import ServerTls
from thrifty.observe.names.finder import find_obstacle
from thrifty.release.plan import ReleasePlan
from thrifty.spec import LoadedSpec, LoadedVersion, Spec
from thrifty.spec.faults import suggest
from thrifty.spec.own_file import parse_data
from thrifty.spec.section import MAX_LABEL
from thrifty.types import Family, OnProgress

Model = tuple[NamedVersion, Artifact]
Deployments = Mapping[str, DesiredDeployment]

NO_LOOP = (
    "is for models that answer, and this one does not. The loop learns from what users say of "
    "answers. Train an encoder on pairs of texts (thrifty train --method contrastive), judge it "
    "(thrifty gate) and release it (thrifty release)"
)


class ModelMaker(Protocol):
    """Makes the models that specs ask for and no engine makes by itself."""

    def check(self, loaded: LoadedSpec) -> None:
        """Refuse what can be refused before anything is fetched. Raises `SpecError`."""
        ...

    def choose(self, loaded: LoadedSpec, model: Model, on_progress: OnProgress) -> Choice:
        """What `auto` takes, measured now unless it was before. Blocks."""
        ...

    def make(self, loaded: LoadedSpec, model: Model, on_progress: OnProgress) -> tuple[Spec, Model]:
        """What is to be served in place of `model`, and as what. Blocks."""
        ...


def check_spec(
    loaded: LoadedSpec, machine: Machine, maker: ModelMaker | None = None
) -> list[LoadedSpec]:
    """The spec of each deployment. Refuses what can be refused before a model is looked for: then a
    download is not in vain. Raises `SpecError`.
    """
    if loaded.spec.redis and find_spec("redis") is None:
        loaded.refuse([Problem("redis", "needs its client: pip install 'thrifty[redis]'")])
    if loaded.spec.observe.otlp.endpoint and not _has_otlp():
        message = "needs OTLP's messages: pip install 'thrifty[otel]'"
        loaded.refuse([Problem("observe.otlp.endpoint", message)])
    if loaded.spec.gateway.oidc.issuer is not None and find_spec("authlib") is None:
        loaded.refuse([Problem("gateway.oidc", "needs pip install 'thrifty[oidc]'")])
    if loaded.spec.record.names and (obstacle := find_obstacle(loaded.spec.record.names_model)):
        loaded.refuse([Problem("record.names", obstacle)])
    _check_tls(loaded)
    _check_text_keys(loaded)
    _check_capacity(loaded)
    each = loaded.each()
    _check_fleet(loaded, each)
    for one in each:
        _check_improve(one)
        for version in one.versions():
            check_engine(version.loaded, machine)
            _check_remote(version.loaded)
            if version.loaded.spec.compress.is_pipeline:
                _check_loads_models(version.loaded)
                if maker is not None:
                    maker.check(version.loaded)
    return each


def _check_improve(loaded: LoadedSpec) -> None:
    """Refuse a loop that could learn nothing, and a plan of releases that cannot be used."""
    if "improve" not in loaded.spec.model_fields_set:
        return
    if not loaded.spec.record.prompts:
        message = "learns from recorded questions and answers; set 'record: {prompts: true}'"
        loaded.refuse([Problem("improve", message)])
    for version in loaded.versions():
        kind = version.loaded.spec.engine.kind
        if kind in engine_kinds() and not find_engine(kind).traits.loads_model:
            message = (
                f"needs a stored model to train, and the engine {kind!r} loads none; leave 'improve' "
                "out"
            )
            loaded.refuse([Problem("improve", message)])
    try:
        parse_data(ReleasePlan, loaded.spec.improve.release, "")
    except SpecError as error:
        faults = [(f"improve.release.{one.path}".rstrip("."), one) for one in error.problems]
        loaded.refuse([Problem(path, one.message) for path, one in faults])


def _has_otlp() -> bool:
    with contextlib.suppress(ModuleNotFoundError):  # of the package around it
        return find_spec("opentelemetry.proto") is not None
    return False


def check_engine(loaded: LoadedSpec, machine: Machine) -> None:
    """Refuse an engine that is not there, and options that it cannot take here. Raises `SpecError`."""
    spec, kind = loaded.spec, loaded.spec.engine.kind
    if kind == "auto":
        return
    if kind not in engine_kinds():
        hint = suggest(kind, ["auto", *engine_kinds()])
        loaded.refuse([Problem("engine.kind", f"{kind!r} is not an engine; {hint}")])
    if find_engine(kind).traits.external and spec.replicas.bounds is not None:
        message = (
            f"sets bounds, and the engine {kind!r} starts no copies: they are as many as its URLs. "
            "Leave 'min' and 'max' out"
        )
        loaded.refuse([Problem("replicas", message)])
    loaded.refuse(find_engine(kind).check(spec, None, machine))


def _check_remote(loaded: LoadedSpec) -> None:
    """Refuse a remote's URL that is none or holds secrets, and sharing without a remote."""
    spec, kind = loaded.spec, loaded.spec.engine.kind
    loads = kind == "auto" or find_engine(kind).traits.loads_model
    if loads and is_reference(spec.model):
        try:
            parse_reference(spec.model)
        except RemoteError as error:
            loaded.refuse([Problem("model", str(error))])
    elif spec.share:
        why = f"{spec.model!r} is in no remote" if loads else f"the engine {kind!r} loads no model"
        message = (
            f"has nothing to share: {why}. Push a model to a remote (thrifty models push NAME URL) "
            "and name its URL as the model, or leave 'share' out"
        )
        loaded.refuse([Problem("share", message)])


def _check_tls(loaded: LoadedSpec) -> None:
    tls = loaded.spec.gateway.tls
    if tls.cert is None or tls.key is None:
        return
    try:
        ServerTls(Path(tls.cert), Path(tls.key))
    except ThriftyError as error:
        loaded.refuse([Problem("gateway.tls", str(error).removeprefix("gateway.tls: "))])


def _check_text_keys(loaded: LoadedSpec) -> None:
    """Refuse keys that are not there: texts would be lost."""
    source = loaded.spec.record.encrypt.source
    if not source:
        return
    try:
        read_keys(parse_source(source))
    except TextKeyError as error:
        loaded.refuse([Problem("record.encrypt", str(error))])


def _check_fleet(loaded: LoadedSpec, each: Sequence[LoadedSpec]) -> None:
    """Refuse what replicas elsewhere cannot do."""
    fleet = loaded.spec.fleet
    if fleet.kind != "kubernetes":
        _refuse_images(loaded, each)
    if fleet.kind == "local":
        return
    problems = []
    for one in each:
        for version in one.versions():
            spec = version.loaded.spec
            kind = spec.engine.kind
            traits = find_engine(kind).traits if kind in engine_kinds() else None
            if spec.engine.image is not None and traits is not None and traits.external:
                message = f"names an image, and the engine {kind!r} starts no copies; leave it out"
                problems.append(Problem("engine.image", message))
            if spec.replicas.standby != "stopped":
                message = (
                    f"asks for {spec.replicas.standby!r}; a replica in a cluster keeps the memory that it "
                    "asked for whether it is used or not, and nobody knows on which node the next one "
                    "starts; leave it out"
                )
                problems.append(Problem("replicas.standby", message))
            shared = fleet.kind == "ray"  # without a remote, its nodes share the store
            if fleet.models is None and not shared and (traits is None or traits.loads_model):
                message = (
                    f"is needed: the engine {kind!r} loads a model, which replicas in a cluster find "
                    "in a claim (ReadWriteMany) that they share with this controller"
                )
                problems.append(Problem("fleet.models", message))
    if fleet.tls:
        try:
            load_gateway_side()
        except ThriftyError as error:
            problems.append(Problem("fleet.tls", str(error)))
    loaded.refuse(list(dict.fromkeys(problems)))


_NO_CONTAINERS = {
    "local": "the local fleet starts processes of this machine, no containers; leave 'image' out and "
    "install the engine here (thrifty engines), or let a cluster run replicas (fleet: {kind: "
    "kubernetes}, or thrifty deploy render kubernetes)",
    "ray": "a replica on Ray is a process of the node that it runs on; leave 'image' out, and start the "
    "cluster's nodes from that image (docs/deploy/ray.md)",
}


def _refuse_images(loaded: LoadedSpec, each: Sequence[LoadedSpec]) -> None:
    """Refuse images of engines where replicas are no containers."""
    if any(version.loaded.spec.engine.image for one in each for version in one.versions()):
        loaded.refuse([Problem("engine.image", _NO_CONTAINERS[loaded.spec.fleet.kind])])


def _check_capacity(loaded: LoadedSpec) -> None:
    """Refuse a capacity that the fewest replicas exceed, and one of what no engine uses."""
    bounds = loaded.spec.capacity
    specs = [one.loaded.spec for part in loaded.each() for one in part.versions()]
    known = [spec for spec in specs if spec.engine.kind in engine_kinds()]
    if bounds.gpus is not None and not any(spec.replicas.gpus for spec in specs):
        message = (
            "bounds GPUs, and no deployment takes any; say how many each copy takes "
            "(replicas.gpus), or leave it out"
        )
        loaded.refuse([Problem("capacity.gpus", message)])
    here = [s for s in specs if s not in known or not find_engine(s.engine.kind).traits.external]
    least = sum(spec.replicas.fewest * (spec.replicas.cpus or 1) for spec in here)
    if bounds.cpus is not None and least > bounds.cpus:
        message = (
            f"is {bounds.cpus}, and the fewest replicas need {least} cores; allow more, or lower "
            "'replicas.min' or 'replicas.cpus'"
        )
        loaded.refuse([Problem("capacity.cpus", message)])


def check_keys(gateway: Mapping[str, Any], *, has_keys: bool) -> None:
    """Refuse an address that others can reach where anyone could call. Raises `FleetError`."""
    if gateway.get("require_keys") and gateway.get("oidc") is None and not has_keys:
        raise FleetError(
            f"refusing to listen on {gateway['host']}, which others can reach, without any API "
            "key. Make one (thrifty keys create --name NAME), or say that anyone may call "
            "(--allow-no-keys)"
        )


def _check_loads_models(loaded: LoadedSpec) -> None:
    kind = loaded.spec.engine.kind
    if kind != "auto" and not find_engine(kind).traits.loads_model:
        message = (
            f"the engine {kind!r} loads no model, so there is nothing to compress; write it beside "
            "the deployments that it is for"
        )
        loaded.refuse([Problem("compress", message)])


def check_model(
    loaded: LoadedVersion,
    engine: Engine,
    artifact: Artifact,
    machine: Machine,
    running: Deployments,
) -> None:
    """Refuse a model that the engine cannot serve here. Raises `SpecError`."""
    spec = loaded.loaded.spec
    there = running.get(spec.name or "")
    known = there.find_version(loaded.label) if there is not None and loaded.label else None
    if known is None and there is not None and len(there.versions) == 1:
        known = there.versions[0]
    # More copies than these start only where there is room.
    more = max(1, spec.replicas.fewest)
    if known is not None and known.engine == engine.kind:
        more -= known.replicas.count
    copies = spec.replicas.model_copy(update={"count": max(1, more)})
    problems = engine.check(spec.model_copy(update={"replicas": copies}), artifact, machine)
    if more < 1 or spec.fleet.kind != "local":
        problems = [one for one in problems if one.path not in MEMORY_PATHS]
    loaded.loaded.refuse(problems)


def check_verdict(loaded: LoadedVersion, store: Store, model: Model) -> None:
    """Refuse a model that is marked as failed, unless the spec accepts it. Raises `GateError`."""
    failure = None if loaded.loaded.spec.compress.accept else find_failure(store, model[0])
    if failure is not None:
        raise GateError(
            f"{failure}. To serve it all the same, write 'accept: true' below 'compress' in the spec"
        )


def check_labels(loaded: LoadedSpec, labels: Sequence[tuple[LoadedVersion, str]]) -> None:
    """Refuse versions of one deployment that would have the same label. Raises `SpecError`."""
    taken: dict[str, LoadedVersion] = {}
    for version, label in labels:
        other = taken.setdefault(label, version)
        if other is version:
            continue
        late = version if version.label is None else other
        early = other if late is version else version
        where = f"versions.{late.index}"
        message = (
            f"is called {label!r} by default, as versions.{early.index} is; give it a label of its "
            f"own, such as: label: {_suggest_label(label, [name for _, name in labels])}"
        )
        loaded.refuse([Problem(where, message)])


def check_families(loaded: LoadedSpec, families: Sequence[Family | None]) -> None:
    """Refuse versions of different families, and a loop for what does not answer; None is not known.
    Raises `SpecError`.
    """
    answers = all(family in (None, Family.DECODER) for family in families)
    if not answers and "improve" in loaded.spec.model_fields_set:
        loaded.refuse([Problem("improve", NO_LOOP)])
    known = [(index, family) for index, family in enumerate(families) if family is not None]
    for index, family in known[1:]:
        first, other = known[0]
        if family != other:
            message = (
                f"is a model of the family {family}, and that of versions.{first} is of the family "
                f"{other}; versions of one deployment answer the same requests. Make it a "
                "deployment of its own"
            )
            loaded.refuse([Problem(f"versions.{index}.model", message)])


def _suggest_label(label: str, taken: Sequence[str]) -> str:
    number = 2
    while f"{label[: MAX_LABEL - 4]}-{number}" in taken:
        number += 1
    return f"{label[: MAX_LABEL - 4]}-{number}"


def check_aliases(loaded: LoadedSpec, deployments: Deployments) -> None:
    """Refuse aliases that are the name of another deployment: names that default to their model's
    are known only now. Raises `SpecError`.
    """
    for name, state in deployments.items():
        for alias in state.settings.aliases:
            if alias in deployments and alias != name:
                message = f"{alias!r} is the name of a deployment and an alias of {name!r}"
                loaded.refuse([Problem("aliases", message)])
