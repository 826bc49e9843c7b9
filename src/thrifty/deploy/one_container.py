"""Services in one container: the whole spec, gateway and replicas, as `thrifty up` runs it.

The spec travels in an environment variable (`thrifty up env:THRIFTY_SPEC`) or in a file, keys in
variables that the platform takes from its secret store.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from thrifty.deploy.base import ADMIN_VARIABLE, VIEWER_VARIABLE, ContainerOptions, Request
from thrifty.deploy.service import BESIDE_IDENTITY
from thrifty.deploy.sizing import GATEWAY_BYTES, Need, find_need
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.errors import Problem, SpecError
from thrifty.spec.section import Bytes, Integer

SPEC_VARIABLE = "THRIFTY_SPEC"
KEYS = {ADMIN_VARIABLE: "admin", VIEWER_VARIABLE: "viewer"}
"""The variables with API keys, and the role of each."""
START_S = 1800
"""How long the fetching, preparing and loading of models may take before a platform gives up."""


class OneContainerOptions(ContainerOptions):
    """Options of targets that run the whole service in one container."""

    memory: Bytes | None = Field(
        None,
        ge=256_000_000,
        description="Memory of the container. Default: from the models' sizes, which the store must "
        "know (`thrifty pull`).",
    )
    cpus: Integer | None = Field(
        None, ge=1, le=256, description="Cores of the container. Default: those of all replicas."
    )


class WholeOptions(OneContainerOptions):
    """Options of platforms that cannot leave out a secret that does not exist."""

    hf_token: bool = Field(
        False,
        description="Give the container the secret hf-token, which gated models of the Hugging Face "
        "hub need. The secret must exist then.",
    )


class ScaledOptions(OneContainerOptions):
    """Options of platforms that start and stop containers by the requests."""

    min: Integer = Field(0, ge=0, description="The fewest containers; 0 stops the last one too.")
    max: Integer = Field(4, ge=1, le=1000, description="The most containers.")
    concurrency: Integer = Field(
        16, ge=1, description="Requests that one container gets at once before another is started."
    )
    timeout: Integer = Field(600, ge=1, description="Seconds that a request may take.")

    @model_validator(mode="after")
    def _check_bounds(self) -> ScaledOptions:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max, {self.max}")
        return self


def find_container_need(request: Request) -> Need:
    """What one container with all replicas needs. Raises `SpecError`."""
    options: OneContainerOptions = request.options
    workers = request.service.loaded.spec.gateway.workers
    memory, cpus, weights, disk = GATEWAY_BYTES * (1 + workers), 0, 0, 0
    known = True
    for version in request.service.own_versions:
        count = version.spec.replicas.count
        try:
            need = find_need(version, request.store, None, None)
        except SpecError:
            if options.memory is None:
                raise
            known = False
            need = find_need(version, request.store, options.memory, None)
        memory += count * need.memory_bytes
        cpus += count * need.cpus
        weights += count * (need.weights_bytes + version.engine.traits.runtime_bytes)
        disk += need.disk_bytes
    least = weights + GATEWAY_BYTES * (1 + workers)
    if options.memory is not None and known and options.memory < least:
        message = (
            f"{options.memory / 1e9:.2f} GB do not hold this service: weights, libraries and the "
            f"gateway alone are {least / 1e9:.2f} GB; give it {memory / 1e9:.2f} GB, or use smaller "
            "weights (compress: int4) or fewer replicas"
        )
        raise SpecError([Problem("memory", message)], "the options")
    return Need(options.memory or memory, options.cpus or max(1, cpus), weights, disk)


def make_arguments(target: str) -> list[str]:
    """The arguments of `thrifty` in the container."""
    keys = [part for variable, role in KEYS.items() for part in ("--key", f"{role}={variable}")]
    return ["up", target, "--no-measure", *keys]


def make_spec_text(request: Request) -> str:
    """The spec as the container reads it."""
    return dump_yaml(request.service.whole_spec())


def list_secret_variables(request: Request, *, whole: bool = False) -> list[str]:
    """Every variable that holds a secret and must be there. `whole`: the platform cannot leave one
    out, so those that fetching models needs are among them; the hub's token only where the options
    ask for it, because most of its models need none.
    """
    names = [*KEYS, *request.service.key_variables()]
    if whole:
        beside = {*BESIDE_IDENTITY, *(() if request.options.hf_token else ("HF_TOKEN",))}
        names += [name for name in request.service.credential_variables() if name not in beside]
    return names


def refuse_shared_database(request: Request, target: str) -> None:
    """Refuse a database where a platform may run several containers. Raises `SpecError`."""
    spec = request.service.loaded.spec
    problems = [
        Problem(
            key,
            f"cannot be shared by the containers of {target}, each of which has a controller of its "
            "own; leave it out, or use the target kubernetes or compose",
        )
        for key in ("database", "redis")
        if getattr(spec, key)
    ]
    request.service.loaded.refuse(problems)


def make_probe(path: str, port: Any, **more: int) -> dict[str, Any]:
    """An HTTP probe."""
    return {"httpGet": {"path": path, "port": port}, **more}


CANNOT_SHARE = (
    "Each container keeps its own request log, limits, budgets, batches and cache, and loses them "
    "when it ends: use kubernetes or compose where these must last.",
)
