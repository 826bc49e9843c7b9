"""Which engines there are. Adding one is one line here and a module of its own."""

from __future__ import annotations

import importlib

from thrifty.artifacts import Artifact
from thrifty.engines.base import Engine
from thrifty.errors import EngineError
from thrifty.types import Family

_ENGINES = {
    "openvino": "thrifty.engines.openvino.adapter:OpenVinoEngine",
    "llamacpp": "thrifty.engines.llamacpp.adapter:LlamaCppEngine",
    "vllm": "thrifty.engines.vllm.adapter:VllmEngine",
    "remote": "thrifty.engines.remote:RemoteEngine",
    "echo": "thrifty.engines.echo.adapter:EchoEngine",
}
"""Adapters by the name that specs use, imported when they are asked for."""


def engine_kinds() -> list[str]:
    """The names of all engines."""
    return list(_ENGINES)


def find_engine(kind: str) -> Engine:
    """The adapter called `kind`. Raises `EngineError`."""
    target = _ENGINES.get(kind)
    if target is None:
        raise EngineError(f"there is no engine {kind!r}; there are {', '.join(_ENGINES)}")
    module, _, name = target.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)()
    return engine


def choose_engine(kind: str, artifact: Artifact | None) -> Engine:
    """The adapter for `kind`; for `auto`, the first by `auto_rank` that serves such models.

    Raises `EngineError`.
    """
    if kind != "auto":
        return find_engine(kind)
    family = artifact.description.family if artifact else Family.DECODER
    ranked = []
    for engine in map(find_engine, _ENGINES):
        traits = engine.traits
        fits = artifact is None or artifact.description.format in traits.formats
        if traits.auto_rank is not None and family in traits.families and fits:
            ranked.append((traits.auto_rank, engine.kind, engine))
    if not ranked:
        what = (
            f"a {artifact.description.format.value} {family}" if artifact else family.with_article
        )
        raise EngineError(f"no engine serves {what} by itself; name one (engine.kind)")
    return min(ranked, key=lambda one: one[:2])[2]
