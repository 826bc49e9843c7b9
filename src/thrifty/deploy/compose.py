"""Compose: the whole service in one container, with PostgreSQL, Redis and Prometheus beside it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thrifty.deploy.base import HOME, IMAGE_PATTERN, Files, Request, Target, make_header
from thrifty.deploy.commands import LINES, Commands, Place, Step
from thrifty.deploy.one_container import (
    KEYS,
    START_S,
    OneContainerOptions,
    find_container_need,
    list_secret_variables,
    make_arguments,
    make_spec_text,
)
from thrifty.deploy.sizing import MIB
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.version import __version__

_DATABASE = "postgresql+psycopg://thrifty:${POSTGRES_PASSWORD}@postgres:5432/thrifty"
_NEEDED = ":?put it into the file .env, see docs/deploy/compose.md}"


class ComposeOptions(OneContainerOptions):
    """Options of Compose."""

    image: str = Field(
        f"thrifty:{__version__}",
        pattern=IMAGE_PATTERN,
        description="The image, built from deploy/Containerfile.",
    )
    publish: str = Field(
        "127.0.0.1:8080",
        pattern=r"^(\d{1,3}(\.\d{1,3}){3}:)?\d{1,5}$",
        description="Where the gateway is reached on the host, as `[ADDRESS:]PORT`.",
    )
    postgres: str = Field(
        "postgres:17", pattern=IMAGE_PATTERN, description="PostgreSQL's image; best by digest."
    )
    redis: str = Field(
        "valkey/valkey:8", pattern=IMAGE_PATTERN, description="Valkey's or Redis' image."
    )
    prometheus: str = Field(
        "prom/prometheus:v3.5.0", pattern=IMAGE_PATTERN, description="Prometheus' image."
    )


def render_compose(request: Request) -> Files:
    """`compose.yaml`, the spec, and Prometheus' configuration."""
    header = make_header(request, "compose")
    services = {
        "thrifty": _make_thrifty(request),
        "postgres": _make_postgres(request.options.postgres),
        "redis": _make_redis(request.options.redis),
        "prometheus": _make_prometheus(request),
    }
    compose = {
        "name": "thrifty",
        "services": services,
        "volumes": {"home": {}, "database": {}, "metrics": {}},
        "configs": {
            "spec": {"file": "./thrifty.yaml"},
            "prometheus": {"file": "./prometheus.yaml"},
        },
        "secrets": {"viewer_key": {"environment": "THRIFTY_VIEWER_KEY"}},
    }
    scrape = {
        "job_name": "thrifty",
        "scrape_interval": "15s",
        "authorization": {"credentials_file": "/run/secrets/viewer_key"},
        "static_configs": [{"targets": [f"thrifty:{request.service.port}"]}],
    }
    return {
        "compose.yaml": header + dump_yaml(compose),
        "thrifty.yaml": header + make_spec_text(request),
        "prometheus.yaml": header + dump_yaml({"scrape_configs": [scrape]}),
    }


def _make_thrifty(request: Request) -> dict[str, Any]:
    service, options = request.service, request.options
    need = find_container_need(request)
    drain_s = round(service.loaded.spec.gateway.drain_timeout)
    environment: dict[str, str | None] = {"THRIFTY_HOME": HOME, "HOME": "/tmp"}  # noqa: S108
    for name in (*KEYS, *service.key_variables()):
        environment[name] = f"${{{name}{_NEEDED}"
    # Without a value: set as it is here, or not at all.
    environment |= dict.fromkeys(service.credential_variables())
    environment["THRIFTY_DATABASE"] = _DATABASE
    environment["THRIFTY_REDIS"] = "redis://redis:6379/0"
    probe = (
        "import urllib.request as r; "
        f"r.urlopen('http://127.0.0.1:{service.port}/readyz', timeout=5)"
    )
    return {
        "image": options.image,
        "command": make_arguments("/etc/thrifty/thrifty.yaml"),
        "environment": environment,
        "ports": [f"{options.publish}:{service.port}"],
        "configs": [{"source": "spec", "target": "/etc/thrifty/thrifty.yaml"}],
        "volumes": [f"home:{HOME}"],
        "tmpfs": ["/tmp"],  # noqa: S108
        "read_only": True,
        "user": "10001:10001",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "cpus": need.cpus,
        "mem_limit": f"{need.memory_bytes // MIB}m",
        "stop_grace_period": f"{drain_s + 40}s",
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD", "python", "-c", probe],
            "interval": "10s",
            "timeout": "10s",
            "retries": 3,
            "start_period": f"{START_S}s",
            "start_interval": "2s",
        },
        "depends_on": {
            "postgres": {"condition": "service_healthy"},
            "redis": {"condition": "service_healthy"},
        },
    }


def _make_postgres(image: str) -> dict[str, Any]:
    return {
        "image": image,
        "environment": {
            "POSTGRES_USER": "thrifty",
            "POSTGRES_DB": "thrifty",
            "POSTGRES_PASSWORD": f"${{POSTGRES_PASSWORD{_NEEDED}",
        },
        "volumes": ["database:/var/lib/postgresql/data"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD-SHELL", "pg_isready -U thrifty"],
            "interval": "5s",
            "retries": 20,
        },
    }


def _make_redis(image: str) -> dict[str, Any]:
    return {
        "image": image,
        # Counts and cached answers: nothing in it has to outlive it.
        "command": ["--save", "", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"],
        "read_only": True,
        "tmpfs": ["/data"],
        "cap_drop": ["ALL"],
        "user": "999:999",
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
        "healthcheck": {
            "test": ["CMD-SHELL", "valkey-cli ping || redis-cli ping"],
            "interval": "5s",
            "retries": 20,
        },
    }


def _make_prometheus(request: Request) -> dict[str, Any]:
    return {
        "image": request.options.prometheus,
        "ports": ["127.0.0.1:9090:9090"],
        "configs": [{"source": "prometheus", "target": "/etc/prometheus/prometheus.yml"}],
        "secrets": ["viewer_key"],
        "volumes": ["metrics:/prometheus"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    }


def make_compose_commands(request: Request, place: Place) -> Commands:
    """A project of Docker Compose."""
    compose = ("docker", "compose", "--project-name", place.name, "--file",
               str(place.folder / "compose.yaml"))  # fmt: skip
    return Commands(
        install="https://docs.docker.com/compose/install",
        steps=(
            Step(
                f"the project {place.name}",
                (*compose, "up", "--detach", "--remove-orphans"),
                ((*compose, "down"),),
                undo_data=((*compose, "down", "--volumes"),),
            ),
        ),
        status=(*compose, "ps", "--all"),
        logs=(*compose, "logs", "--tail", LINES),
        variables=(*list_secret_variables(request), "POSTGRES_PASSWORD"),
    )


TARGET = Target(
    name="compose",
    summary="A Compose file: the service, PostgreSQL, Redis and Prometheus on one host",
    options=ComposeOptions,
    cannot=(
        "All replicas run in one container on one host: use the target kubernetes for several.",
        "The spec's own database and redis are replaced by those of the Compose file: point a "
        "service at others with `thrifty up`, or edit THRIFTY_DATABASE and THRIFTY_REDIS in it.",
    ),
    render=render_compose,
    commands=make_compose_commands,
    next_steps="docker compose --project-directory DIR up -d   (write DIR/.env first: docs/deploy/compose.md)",
)
