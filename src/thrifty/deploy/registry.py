"""Which targets there are. Adding one is one line here and a module of its own."""

from __future__ import annotations

import importlib

from thrifty.deploy.base import Target
from thrifty.errors import ThriftyError
from thrifty.spec.faults import suggest

_TARGETS = {
    "kubernetes": "thrifty.deploy.kubernetes",
    "helm": "thrifty.deploy.helm",
    "kserve": "thrifty.deploy.kserve",
    "ray": "thrifty.deploy.ray",
    "compose": "thrifty.deploy.compose",
    "knative": "thrifty.deploy.knative",
    "cloudrun": "thrifty.deploy.cloudrun",
    "fargate": "thrifty.deploy.fargate",
    "lambda": "thrifty.deploy.lambda_function",
    "containerapps": "thrifty.deploy.containerapps",
    "skypilot": "thrifty.deploy.skypilot",
}
"""Modules by the target's name, imported when asked for."""


def target_names() -> list[str]:
    """The names of all targets."""
    return list(_TARGETS)


def find_target(name: str) -> Target:
    """The target called `name`. Raises `ThriftyError`."""
    module = _TARGETS.get(name)
    if module is None:
        hint = suggest(name, target_names())
        raise ThriftyError(f"{name!r} is not a target; {hint} (thrifty deploy targets)")
    target: Target = importlib.import_module(module).TARGET
    return target
