"""What targets write, kept as files: `python -m tests.deploy.golden` writes them anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.deploy.specs import (
    AZURE,
    ECHO,
    FLEET,
    ONE_MODEL,
    RAY,
    SEVERAL,
    TWO_VERSIONS,
    render,
)

FOLDER = Path(__file__).parent / "golden"

PACKAGE = {"image": None, "package": "thrifty[ray,remotes]==0.2.0"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str | None]]] = {
    "kubernetes": (
        "kubernetes",
        TWO_VERSIONS,
        {
            "autoscale": "hpa", "host": "llm.example.com", "ingress_class": "nginx",
            "ingress_tls": "llm-tls", "parent_gateway": "infra/public", "monitoring": "true",
        },
    ),
    "helm": ("helm", TWO_VERSIONS, {}),
    "kserve": ("kserve", TWO_VERSIONS, {"min": "1"}),
    "compose": ("compose", TWO_VERSIONS, {"memory": "8GB", "image": "thrifty:1"}),
    "knative": ("knative", TWO_VERSIONS, {"max": "8"}),
    "cloudrun": ("cloudrun", ONE_MODEL, {}),
    "fargate": ("fargate", ONE_MODEL, {"count": "2", "spot": "true"}),
    "lambda": ("lambda", ONE_MODEL, {"concurrency": "20"}),
    "containerapps": ("containerapps", ONE_MODEL, AZURE),
    "skypilot": ("skypilot", ONE_MODEL, {"spot": "true", "max": "4"}),
    "kubernetes-fleet": (
        "kubernetes", FLEET, {"storage": "claim", "storage_class": "shared"},
    ),
    "kubernetes-several": ("kubernetes", SEVERAL, {"database": "true", "redis": "true"}),
    "ray-kuberay": ("ray", TWO_VERSIONS, {"gcs_redis": "redis://redis:6379"}),
    "ray-aws": ("ray", RAY, {"provider": "aws", "region": "eu-central-1", **PACKAGE, "spot": "true"}),
    "ray-azure": (
        "ray", RAY,
        {"provider": "azure", "region": "westeurope", "resource_group": "llm", **PACKAGE},
    ),
    "ray-gcp": (
        "ray", RAY,
        {"provider": "gcp", "region": "europe-west4", "zone": "europe-west4-a", "project": "llm",
         **PACKAGE},
    ),
}  # fmt: skip
"""The target, spec and options of each folder."""


def render_case(name: str) -> dict[str, str]:
    """The files of one case."""
    target, spec, options = CASES[name]
    return dict(render(target, spec, **options))


def main() -> None:
    """Write every case."""
    for name in CASES:
        folder = FOLDER / name
        for path in folder.rglob("*") if folder.exists() else ():
            if path.is_file():
                path.unlink()
        for file, text in render_case(name).items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

__all__ = ["CASES", "ECHO", "FOLDER", "ONE_MODEL", "render_case"]
