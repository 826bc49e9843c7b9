"""Which engines there are. Adding one is one line here and a module of its own."""

from __future__ import annotations

import importlib

from thrifty.artifacts import Artifact
from thrifty.engines.base import Engine
from thrifty.errors import EngineError
from thrifty.types import Family

_ENGINES = {
    "openvino": "thrifty.engines.openvino.adapter:OpenVinoEngine",
    "remote": "thrifty.engines.remote:RemoteEngine",
    "echo": "thrifty.engines.echo.adapter:EchoEngine",
}
"""Adapters by the name that specs use, imported when they are asked for."""

AUTO_ORDER = ("openvino",)
"""Which engines `auto` may take, the best first. `remote` and `echo` are only taken by name."""


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
    """The adapter for `kind`; for `auto`, the best one for the model. Raises `EngineError`."""
    if kind != "auto":
        return find_engine(kind)
    family = artifact.description.family if artifact else Family.DECODER
    for candidate in AUTO_ORDER:
        return find_engine(candidate)
    raise EngineError(f"no engine here serves a {family.value}")
