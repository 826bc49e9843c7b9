"""The interface of a target: its options, what it cannot do, and its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from thrifty.artifacts import Store
from thrifty.deploy.commands import YOUR_MACHINES, Commands, Cost, Place
from thrifty.deploy.service import DeployedService, make_checksum
from thrifty.deploy.sizing import GATEWAY_BYTES, Need, find_need, find_preparing_bytes
from thrifty.errors import Problem, SpecError
from thrifty.kubernetes import pods
from thrifty.spec.section import Bytes, Integer, Section

IMAGE_PATTERN = r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$"
DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
HOME, CONFIG, USER_ID = pods.HOME, pods.CONFIG, pods.USER_ID
ADMIN_VARIABLE = "THRIFTY_ADMIN_KEY"
VIEWER_VARIABLE = "THRIFTY_VIEWER_KEY"
SECRET_KEYS = {"HF_TOKEN": "hf-token"}
"""The keys of a Secret that are not called as the variable."""

Files = Mapping[str, str]
"""Texts by file name, relative to the output folder."""


class ContainerOptions(Section):
    """Options of every target that runs our image."""

    image: str = Field(
        pattern=IMAGE_PATTERN,
        description="The image, built from deploy/Containerfile and pushed to a registry of yours; "
        "best by digest (`registry.example.com/thrifty@sha256:...`).",
    )
    memory: Bytes | None = Field(
        None,
        ge=256_000_000,
        description="Memory of each replica. Default: from the model's size, which the store must "
        "know (`thrifty pull`).",
    )
    cpus: Integer | None = Field(
        None, ge=1, le=256, description="Cores of each replica. Default: `replicas.cpus`, or 2."
    )


@dataclass(frozen=True)
class Request:
    """What is to be rendered."""

    service: DeployedService
    options: Any
    """Of the target's own kind."""
    store: Store
    """What is known of models' sizes."""

    @property
    def checksum(self) -> str:
        """Of the spec and the options."""
        return make_checksum(self.service, self.options.model_dump(mode="json"))

    def find_needs(self) -> dict[tuple[str, str], Need]:
        """What a replica of each version of ours needs, by deployment and label."""
        return {
            (one.deployment, one.label): find_need(
                one, self.store, self.options.memory, self.options.cpus
            )
            for one in self.service.own_versions
        }

    def find_gateway_need(self, *, prepares: bool, cpus: int = 1) -> Need:
        """What the gateway's container needs, with at least `cpus` cores; `prepares`: its controller
        prepares the models, and does so before it listens. Raises `SpecError` as `find_need` does.
        """
        workers = self.service.loaded.spec.gateway.workers
        memory_bytes = GATEWAY_BYTES * (1 + workers)
        for one in self.service.own_versions if prepares else ():
            preparing = find_preparing_bytes(one, self.store, self.options.memory)
            memory_bytes = max(memory_bytes, preparing)
        return Need(memory_bytes, max(cpus, workers))


@dataclass(frozen=True)
class Target:
    """One platform."""

    name: str
    summary: str
    options: type[Section]
    cannot: tuple[str, ...]
    """What it cannot do, each as a sentence that says what to do instead."""
    render: Callable[[Request], Files]
    next_steps: str
    """What to do with the files, as commands; `DIR` stands for the folder."""
    commands: Callable[[Request, Place], Commands] | None = None
    """What its client program is told; None where the cluster's API is used directly."""
    cost: Callable[[Request], Cost] = lambda request: YOUR_MACHINES
    """What it costs; raises `SpecError` as `render` does."""
    fleets: frozenset[str] = frozenset()
    """The kinds of `fleet`, besides `local`, that it renders."""
    images: bool = False
    """Whether versions may run in images of their own (`engine.image`)."""


def parse_target_options(target: Target, values: Mapping[str, str]) -> Section:
    """The options that `--set KEY=VALUE` gave. Raises `SpecError` with every fault."""
    try:
        return target.options.model_validate(dict(values))
    except ValidationError as error:
        problems = [_describe_fault(target, dict(fault)) for fault in error.errors()]
        raise SpecError(problems, f"the options of {target.name}") from None


def refuse_fleet(target: Target, service: DeployedService) -> None:
    """Refuse a spec whose replicas run where the target does not reach, or in what it does not start.
    Raises `SpecError`.
    """
    kind = service.loaded.spec.fleet.kind
    if kind != "local" and kind not in target.fleets:
        others = "kubernetes or helm" if kind == "kubernetes" else kind
        message = (
            f"is {kind}, and {target.name} starts replicas itself; leave it out, or render for "
            f"{others}"
        )
        service.loaded.refuse([Problem("fleet", message)])
    if not target.images and any(one.spec.engine.image for one in service.versions):
        message = (
            f"names an image for the copies of one version, and {target.name} runs everything in one "
            "image; leave it out and give that image as --set image=, or use kubernetes or helm"
        )
        service.loaded.refuse([Problem("engine.image", message)])


def _describe_fault(target: Target, fault: dict[str, Any]) -> Problem:
    path = ".".join(map(str, fault["loc"])) or "--set"
    known = ", ".join(target.options.model_fields)
    if fault["type"] == "extra_forbidden":
        return Problem(path, f"is not an option of {target.name}; it has {known}")
    if fault["type"] == "missing":
        text = target.options.model_fields[path].description or ""
        return Problem(path, f"is needed (--set {path}=...). {text}")
    return Problem(path, str(fault.get("ctx", {}).get("error", fault["msg"])))


def make_credentials(names: Iterable[str], secret: str) -> list[dict[str, Any]]:
    """Variables of a pod that fetching models may need, out of a Secret that may have them."""
    return [
        pods.secret_variable(name, secret, SECRET_KEYS.get(name, name), optional=True)
        for name in dict.fromkeys(names)
    ]


def make_header(request: Request, target: str) -> str:
    """The comment on top of every file."""
    return (
        f"# Made by `thrifty deploy render {target}`. Change the spec, not this.\n"
        f"# spec checksum: sha256:{request.checksum}\n"
    )
