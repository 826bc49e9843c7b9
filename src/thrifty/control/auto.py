"""Where a spec says `auto`: what was decided for it, what is to be measured, what is left as it is.

Plans and preparations both come by here, so that they agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from thrifty.artifacts import Artifact, Store
from thrifty.control.checks import Deployments, Model, ModelMaker
from thrifty.engines.choice import (
    SPECULATION,
    Candidate,
    Candidates,
    Choice,
    find_choice,
    list_candidates,
)
from thrifty.engines.machine import Machine
from thrifty.spec import LoadedVersion, Spec
from thrifty.types import Family, Format, OnProgress

ONLY_ONE = "nothing else can serve it here"


@dataclass(frozen=True)
class Auto:
    """What `auto` comes to for one version."""

    choice: Choice | None = None
    """What was decided; None where nothing was, or there is nothing to decide."""
    to_measure: Candidates | None = None
    """What is to be measured first."""
    first: str | None = None
    """The engine to take where nothing was measured: the first by rank that can."""


def find_auto(spec: Spec, store: Store, artifact: Artifact, machine: Machine) -> Auto:
    """What `auto` comes to for this model, as far as it is known. Nothing is measured."""
    if not _has_auto(spec, artifact):
        return Auto()
    found = find_choice(spec, store, artifact, machine)
    if found is not None:
        return Auto(found)
    candidates = list_candidates(spec, artifact, machine)
    if len(candidates.able) == 1:
        return Auto(Choice(candidates.able[0], ONLY_ONE))
    if spec.asks_to_measure and candidates.able:
        return Auto(to_measure=candidates)
    return Auto(first=candidates.able[0].engine if candidates.able else None)


def resolve_auto(
    version: LoadedVersion,
    model: Model,
    store: Store,
    machine: Machine,
    maker: ModelMaker,
    running: Deployments,
    on_progress: OnProgress,
) -> LoadedVersion:
    """`version` with what was decided in place of `auto`; measured now if it is to be. Blocks.

    Where a service is `running` nothing is measured: it would slow its requests, and they would slow
    the candidates.
    """
    found = find_auto(version.loaded.spec, store, model[1], machine)
    if found.to_measure is not None and not running:
        found = Auto(maker.choose(version.loaded, model, on_progress))
    return put_auto(version, found)


def put_auto(version: LoadedVersion, found: Auto) -> LoadedVersion:
    """`version` with what was decided in place of `auto`, or with the first engine that can."""
    spec, choice, first = version.loaded.spec, found.choice, found.first
    if found.to_measure is not None:
        first = found.to_measure.able[0].engine
    if choice is not None:
        spec = choice.candidate.put_into(spec)
    elif first is not None:
        spec = Candidate(first, spec.compress.quantize.scheme).put_into(spec)
    return replace(version, loaded=replace(version.loaded, spec=spec))


def _has_auto(spec: Spec, artifact: Artifact) -> bool:
    """Whether there is anything to decide. What a pipeline makes is for the engine that it was made
    for, and encoders have one engine.
    """
    if spec.compress.is_pipeline or artifact.description.family is not Family.DECODER:
        return False
    prepared = artifact.description.format is Format.OPENVINO
    forms = spec.compress.quantize.scheme == "auto" and not prepared
    guesses = spec.engine.options.get(SPECULATION) == "auto"
    return spec.engine.kind == "auto" or forms or guesses
