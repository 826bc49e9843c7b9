"""Knative Serving: the whole service in one container, scaled by concurrency, down to none."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thrifty.deploy.base import (
    CONFIG,
    DNS_LABEL,
    HOME,
    USER_ID,
    Files,
    Request,
    Target,
    make_credentials,
    make_header,
)
from thrifty.deploy.commands import Commands, Place, make_kubectl_commands
from thrifty.deploy.limits import check_bound, load_platforms
from thrifty.deploy.one_container import (
    CANNOT_SHARE,
    START_S,
    ScaledOptions,
    find_container_need,
    list_secret_variables,
    make_arguments,
    make_probe,
    make_spec_text,
    refuse_shared_database,
)
from thrifty.deploy.yaml_text import dump_documents
from thrifty.kubernetes.names import make_slug
from thrifty.kubernetes.pods import (
    CHECKSUM,
    format_quantity,
    make_labels,
    secret_variable,
)


class KnativeOptions(ScaledOptions):
    """Options of the targets `knative` and `kserve`."""

    namespace: str = Field("thrifty", pattern=DNS_LABEL, description="Where it is put.")
    name: str = Field("thrifty", pattern=DNS_LABEL, description="What the service is called.")
    secret: str = Field(
        "thrifty",
        pattern=DNS_LABEL,
        description="The Secret with the keys `admin-key` and `viewer-key`; it is never rendered.",
    )


def make_config(request: Request) -> dict[str, Any]:
    """The ConfigMap with the spec."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _make_metadata(request),
        "data": {"thrifty.yaml": make_spec_text(request)},
    }


def make_container(request: Request, name: str) -> dict[str, Any]:
    """The container, without probes."""
    options: KnativeOptions = request.options
    need = find_container_need(request)
    bounds = {"cpu": str(need.cpus), "memory": format_quantity(need.memory_bytes)}
    return {
        "name": name,
        "image": options.image,
        "command": ["thrifty"],
        "args": make_arguments(f"{CONFIG}/thrifty.yaml"),
        "env": [
            {"name": "THRIFTY_HOME", "value": HOME},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108
            *(
                secret_variable(one, options.secret, _secret_key(one))
                for one in list_secret_variables(request)
            ),
            *make_credentials(request.service.credential_variables(), options.secret),
        ],
        "ports": [{"containerPort": request.service.port, "protocol": "TCP"}],
        "resources": {"requests": dict(bounds), "limits": bounds},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "home", "mountPath": HOME},
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def make_volumes(request: Request) -> list[dict[str, Any]]:
    """Its volumes."""
    return [
        {"name": "home", "emptyDir": {}},
        {"name": "config", "configMap": {"name": request.options.name}},
        {"name": "tmp", "emptyDir": {}},
    ]


def check_options(request: Request, target: str) -> None:
    """Refuse what the platform does not allow. Raises `SpecError`."""
    refuse_shared_database(request, target)
    platform, options = load_platforms()["knative"], request.options
    check_bound(platform, "timeout", options.timeout, platform.timeout_s, "seconds")
    check_bound(platform, "concurrency", options.concurrency, platform.concurrency, "requests")


def _make_metadata(request: Request) -> dict[str, Any]:
    options: KnativeOptions = request.options
    return {
        "name": options.name,
        "namespace": options.namespace,
        "labels": make_labels("service", make_slug(options.name)),
        "annotations": {CHECKSUM: request.checksum},
    }


def _secret_key(variable: str) -> str:
    """`admin-key` for `THRIFTY_ADMIN_KEY`; other variables under their own name."""
    prefix = "THRIFTY_"
    ours = variable.startswith(prefix)
    return variable.removeprefix(prefix).lower().replace("_", "-") if ours else variable


def render_knative(request: Request) -> Files:
    """A ConfigMap and a Knative Service."""
    check_options(request, "knative")
    options: KnativeOptions = request.options
    container = make_container(request, "thrifty")
    # Knative chooses the port that it probes, and wants no other lifecycle than its own.
    container["readinessProbe"] = make_probe("/readyz", 0, periodSeconds=2, failureThreshold=3)
    container["startupProbe"] = make_probe(
        "/healthz", 0, periodSeconds=2, failureThreshold=START_S // 2
    )
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": _make_metadata(request),
        "spec": {
            "template": {
                "metadata": {
                    "annotations": {
                        "autoscaling.knative.dev/min-scale": str(options.min),
                        "autoscaling.knative.dev/max-scale": str(options.max),
                        "autoscaling.knative.dev/metric": "concurrency",
                        "serving.knative.dev/progress-deadline": f"{START_S}s",
                        CHECKSUM: request.checksum,
                    }
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "containerConcurrency": options.concurrency,
                    "timeoutSeconds": options.timeout,
                    "responseStartTimeoutSeconds": options.timeout,
                    "containers": [container],
                    "volumes": make_volumes(request),
                },
            }
        },
    }
    text = make_header(request, "knative") + dump_documents([make_config(request), service])
    return {"service.yaml": text}


SELECTOR = "app.kubernetes.io/name=thrifty,app.kubernetes.io/component=service"


def make_service_commands(request: Request, place: Place) -> Commands:
    """By kubectl."""
    return make_kubectl_commands(place, request.options.namespace, SELECTOR)


TARGET = Target(
    name="knative",
    summary="A Knative Service: the whole service in one container, scaled to zero",
    options=KnativeOptions,
    cannot=(
        *CANNOT_SHARE,
        "Requests wait while the first container starts, fetches and loads the model, which "
        "Knative ends at its timeout of at most 600 s: set min=1 where that is too long.",
        "Knative gives up containers that are not ready within the progress deadline; it is "
        f"rendered as {START_S} s: fetch larger models into an image of your own.",
    ),
    render=render_knative,
    commands=make_service_commands,
    next_steps="kubectl apply --server-side --field-manager thrifty-render -f DIR",
)
