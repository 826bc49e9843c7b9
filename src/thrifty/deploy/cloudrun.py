"""Google Cloud Run: the whole service in one container, on CPUs, scaled to zero."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thrifty.deploy.base import HOME, Files, Request, Target, make_header
from thrifty.deploy.commands import LINES, Commands, Cost, Place, Step
from thrifty.deploy.limits import GIB, check_bound, choose_size, load_platforms
from thrifty.deploy.one_container import (
    CANNOT_SHARE,
    SPEC_VARIABLE,
    ScaledOptions,
    WholeOptions,
    find_container_need,
    list_secret_variables,
    make_arguments,
    make_probe,
    make_spec_text,
    refuse_shared_database,
)
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.kubernetes.pods import CHECKSUM

_START_S = 240
"""The longest that Cloud Run lets a container start: failureThreshold times periodSeconds."""


class CloudRunOptions(ScaledOptions, WholeOptions):
    """Options of Cloud Run."""

    name: str = Field(
        "thrifty", pattern=r"^[a-z]([a-z0-9-]{0,47}[a-z0-9])?$", description="The service's name."
    )
    service_account: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]{1,63}@[a-z0-9.-]{1,190}$",
        description="Who it runs as: an account that may read the secrets and nothing else.",
    )


def render_cloudrun(request: Request) -> Files:
    """A Service in the format of `gcloud run services replace`."""
    refuse_shared_database(request, "cloudrun")
    options: CloudRunOptions = request.options
    platform = load_platforms()["cloudrun"]
    check_bound(platform, "timeout", options.timeout, platform.timeout_s, "seconds")
    check_bound(platform, "concurrency", options.concurrency, platform.concurrency, "requests")
    size = choose_size(platform, find_container_need(request))
    bounds = {"cpu": f"{size.cpus:g}", "memory": f"{size.memory_bytes * 1024 // GIB}Mi"}
    container: dict[str, Any] = {
        "image": options.image,
        "command": ["thrifty"],
        "args": make_arguments(f"env:{SPEC_VARIABLE}"),
        "ports": [{"name": "http1", "containerPort": request.service.port}],
        "env": [
            {"name": "THRIFTY_HOME", "value": HOME},
            {"name": SPEC_VARIABLE, "value": make_spec_text(request)},
            *(_make_secret(one) for one in list_secret_variables(request, whole=True)),
        ],
        "resources": {"limits": bounds},
        "startupProbe": make_probe(
            "/readyz", request.service.port, periodSeconds=2, timeoutSeconds=2,
            failureThreshold=_START_S // 2,
        ),
        "livenessProbe": make_probe("/healthz", request.service.port, periodSeconds=10),
    }  # fmt: skip
    spec: dict[str, Any] = {
        "containerConcurrency": options.concurrency,
        "timeoutSeconds": options.timeout,
        "containers": [container],
    }
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    annotations = {
        "autoscaling.knative.dev/minScale": str(options.min),
        "autoscaling.knative.dev/maxScale": str(options.max),
        "run.googleapis.com/execution-environment": "gen2",
        "run.googleapis.com/startup-cpu-boost": "true",
        # The controller and batches work between requests too.
        "run.googleapis.com/cpu-throttling": "false",
        CHECKSUM: request.checksum,
    }
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": options.name, "annotations": {CHECKSUM: request.checksum}},
        "spec": {"template": {"metadata": {"annotations": annotations}, "spec": spec}},
    }
    return {"service.yaml": make_header(request, "cloudrun") + dump_yaml(service)}


def _make_secret(variable: str) -> dict[str, Any]:
    """From Secret Manager, where the secret is called as the variable, in lower case with hyphens."""
    name = variable.lower().replace("_", "-")
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": "latest"}}}


def make_run_commands(request: Request, place: Place) -> Commands:
    """A service; the project and the region are those of gcloud's own settings."""
    services = ("gcloud", "run", "services")
    return Commands(
        install="https://cloud.google.com/sdk/docs/install",
        steps=(
            Step(
                f"the service {place.name}",
                (*services, "replace", str(place.folder / "service.yaml")),
                ((*services, "delete", place.name, "--quiet"),),
            ),
        ),
        status=(*services, "describe", place.name),
        logs=(*services, "logs", "read", place.name, "--limit", LINES),
    )


TARGET = Target(
    name="cloudrun",
    summary="A Google Cloud Run service on CPUs, scaled to zero",
    options=CloudRunOptions,
    cannot=(
        *CANNOT_SHARE,
        f"Cloud Run waits at most {_START_S} s for a container to start, and models are fetched "
        "then: put larger ones into an image of your own.",
        "The files of models take memory there, beside the loaded weights.",
        "It renders no GPU: use kubernetes, helm or ray for versions of the engine vllm on GPUs.",
    ),
    render=render_cloudrun,
    commands=make_run_commands,
    cost=lambda request: Cost(
        "Cores and memory of each container while it exists; prices of Cloud Run are not in the table.",
        None,
    ),
    next_steps="gcloud run services replace DIR/service.yaml   (secrets first: docs/deploy/cloudrun.md)",
)
