"""Azure Container Apps: the whole service in one container on processors, scaled to zero by requests."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from thrifty.deploy.base import HOME, Files, Request, Target, make_header
from thrifty.deploy.commands import LINES, Commands, Cost, Place, Step
from thrifty.deploy.limits import GIB, check_bound, choose_size, load_platforms
from thrifty.deploy.one_container import (
    CANNOT_SHARE,
    SPEC_VARIABLE,
    WholeOptions,
    find_container_need,
    list_secret_variables,
    make_arguments,
    make_probe,
    make_spec_text,
    refuse_shared_database,
)
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.errors import Problem, SpecError
from thrifty.kubernetes.pods import CHECKSUM
from thrifty.spec.section import Integer

_TRIES = 10
"""The most that a probe may have."""
_MAX_GRACE_S = 600
_RESOURCE_ID = r"^/subscriptions/[A-Za-z0-9-]+/resourceGroups/[A-Za-z0-9/_.()-]{1,500}$"


class ContainerAppsOptions(WholeOptions):
    """Options of Azure Container Apps."""

    name: str = Field(
        "thrifty", pattern=r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$", description="The app's name."
    )
    location: str = Field(
        "eastus", pattern=r"^[a-z0-9]{2,40}$", description="The region of the environment."
    )
    environment: str = Field(
        pattern=_RESOURCE_ID,
        description="The resource ID of the environment (az containerapp env show --query id).",
    )
    identity: str = Field(
        pattern=_RESOURCE_ID,
        description="The resource ID of a user-assigned identity, which may read the vault's secrets "
        "and pull the image, and nothing else.",
    )
    vault: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]$",
        description="The name of the Key Vault with the secrets.",
    )
    min: Integer = Field(0, ge=0, description="The fewest containers; 0 stops the last one too.")
    max: Integer = Field(4, ge=1, description="The most containers.")
    concurrency: Integer = Field(
        16, ge=1, description="Requests that one container gets at once before another is started."
    )
    start: Integer = Field(
        120,
        ge=10,
        le=2400,
        description="The longest start in seconds, in which the model is fetched and loaded. The "
        "platform looks ten times in it, so that a long one delays each start.",
    )


def render_containerapps(request: Request) -> Files:
    """A container app in the format of `az containerapp create --yaml`."""
    refuse_shared_database(request, "containerapps")
    options: ContainerAppsOptions = request.options
    platform = load_platforms()["containerapps"]
    if options.min > options.max:
        message = f"min is {options.min}, more than max, {options.max}"
        raise SpecError([Problem("min", message)], "the options")
    check_bound(platform, "max", options.max, platform.containers, "containers")
    size = choose_size(platform, find_container_need(request))
    names = list_secret_variables(request, whole=True)
    secrets = {name: name.lower().replace("_", "-") for name in names}
    container = {
        "name": "thrifty",
        "image": options.image,
        "command": ["thrifty"],
        "args": make_arguments(f"env:{SPEC_VARIABLE}"),
        "env": [
            {"name": "THRIFTY_HOME", "value": HOME},
            {"name": SPEC_VARIABLE, "value": make_spec_text(request)},
            *({"name": name, "secretRef": secret} for name, secret in secrets.items()),
        ],
        "resources": {"cpu": size.cpus, "memory": f"{size.memory_bytes / GIB:g}Gi"},
        "probes": _make_probes(request),
    }
    drain_s = round(request.service.loaded.spec.gateway.drain_timeout)
    app = {
        "location": options.location,
        "name": options.name,
        "type": "Microsoft.App/containerApps",
        "tags": {CHECKSUM.replace("/", "-"): request.checksum},
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {options.identity: {}}},
        "properties": {
            "environmentId": options.environment,
            "configuration": {
                "activeRevisionsMode": "Single",
                "ingress": {
                    "external": True,
                    "targetPort": request.service.port,
                    "transport": "http",
                    "allowInsecure": False,
                },
                "secrets": [_make_secret(options, secret) for secret in secrets.values()],
                **_make_registry(options),
            },
            "template": {
                "containers": [container],
                "scale": {
                    "minReplicas": options.min,
                    "maxReplicas": options.max,
                    "rules": [_make_rule(options)],
                },
                "terminationGracePeriodSeconds": min(_MAX_GRACE_S, drain_s + 40),
            },
        },
    }
    return {"app.yaml": make_header(request, "containerapps") + dump_yaml(app)}


def _make_probes(request: Request) -> list[dict[str, Any]]:
    port, period_s = request.service.port, -(-request.options.start // _TRIES)
    return [
        {
            "type": "Startup",
            **make_probe(
                "/readyz", port, periodSeconds=period_s, timeoutSeconds=min(5, period_s),
                failureThreshold=_TRIES,
            ),
        },
        {
            "type": "Liveness",
            **make_probe("/healthz", port, periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        },
        {
            "type": "Readiness",
            **make_probe("/readyz", port, periodSeconds=5, timeoutSeconds=5, failureThreshold=3),
        },
    ]  # fmt: skip


def _make_secret(options: ContainerAppsOptions, name: str) -> dict[str, str]:
    """A reference to a secret of the vault that has the same name."""
    return {
        "name": name,
        "keyVaultUrl": f"https://{options.vault}.vault.azure.net/secrets/{name}",
        "identity": options.identity,
    }


def _make_registry(options: ContainerAppsOptions) -> dict[str, Any]:
    """Azure's own registry is read by the identity; others must be public."""
    server = options.image.partition("/")[0]
    if not server.endswith(".azurecr.io"):
        return {}
    return {"registries": [{"server": server, "identity": options.identity}]}


def _make_rule(options: ContainerAppsOptions) -> dict[str, Any]:
    return {
        "name": "requests",
        "http": {"metadata": {"concurrentRequests": str(options.concurrency)}},
    }


def make_app_commands(request: Request, place: Place) -> Commands:
    """An app in the environment's resource group."""
    parts = request.options.environment.split("/")
    group = parts[parts.index("resourceGroups") + 1]
    app = ("--name", place.name, "--resource-group", group)
    az = ("az", "containerapp")
    return Commands(
        install="https://learn.microsoft.com/cli/azure/install-azure-cli",
        steps=(
            Step(
                f"the app {place.name}",
                (*az, "create", *app, "--yaml", str(place.folder / "app.yaml")),
                ((*az, "delete", *app, "--yes"),),
            ),
        ),
        status=(*az, "show", *app),
        logs=(*az, "logs", "show", *app, "--tail", LINES),
    )


TARGET = Target(
    name="containerapps",
    summary="An Azure Container App on CPUs, scaled to zero",
    options=ContainerAppsOptions,
    cannot=(
        *CANNOT_SHARE,
        "Its front door ends a request on which nothing came for 240 s: ask for streams, or for short "
        "answers.",
        "It uses the Consumption plan, with at most 4 cores and 8 GiB, and no GPU: use kubernetes for "
        "what is larger.",
        "Images are read from Azure's own registry by the identity, or from public ones: copy images "
        "of others to Azure's.",
    ),
    render=render_containerapps,
    commands=make_app_commands,
    cost=lambda request: Cost(
        "Cores and memory of each container while it exists; prices of Container Apps are not in the "
        "table.",
        None,
    ),
    next_steps=(
        "az containerapp create --resource-group GROUP --name thrifty --yaml DIR/app.yaml   (secrets "
        "first: docs/deploy/containerapps.md)"
    ),
)
