"""SkyPilot: virtual machines of clouds that run our container, as a service of several or as one.

Which machines may be taken, and in which order, comes from our own plan (`plan.py`), where the store
knows the model; else SkyPilot takes the cheapest with enough cores and memory.
"""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from thrifty.deploy.base import HOME, Files, Request, Target, make_header
from thrifty.deploy.commands import HOURS_A_MONTH, LINES, Commands, Cost, Place, Step
from thrifty.deploy.limits import GIB
from thrifty.deploy.one_container import (
    CANNOT_SHARE,
    SPEC_VARIABLE,
    START_S,
    OneContainerOptions,
    find_container_need,
    list_secret_variables,
    make_arguments,
    make_spec_text,
    refuse_shared_database,
)
from thrifty.deploy.plan import UTILISATION, Choice, Load, find_shape, make_plan
from thrifty.deploy.sizing import Need, find_artifact
from thrifty.deploy.yaml_text import dump_yaml
from thrifty.errors import Problem, SpecError
from thrifty.prices.table import PriceTable, clouds, load_prices
from thrifty.spec.faults import suggest
from thrifty.spec.section import Duration, Integer, Number

_LEAST_DISK_GIB = 50
_CHOICES = 5
"""So many machines are named at most: SkyPilot tries one after the other where there is no room."""
_IMAGE_GIB = 2


class SkyPilotOptions(OneContainerOptions):
    """Options of SkyPilot."""

    name: str = Field(
        "thrifty", pattern=r"^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$", description="Its name."
    )
    clouds: str = Field(
        "aws,gcp,azure",
        pattern=r"^[a-z]+(,[a-z]+)*$",
        description="The clouds whose machines may be taken, with commas between them.",
    )
    rate: Number = Field(
        100.0, gt=0, description="Tokens of answers a second, at the busiest time, of all machines."
    )
    tpot: Duration = Field(0.1, gt=0, description="The longest time between two tokens.")
    context: Integer = Field(1024, ge=1, description="Tokens of prompt and answer, on average.")
    answer: Integer = Field(256, ge=1, description="Tokens of an answer, on average.")
    min: Integer = Field(
        1, ge=0, description="The fewest machines; at 0 requests fail until one is up."
    )
    max: Integer | None = Field(
        None, ge=1, le=1000, description="The most machines. Default: what `rate` needs."
    )
    spot: bool = Field(
        False,
        description="Take spot machines, and others while there are none. A cloud may end a spot "
        "machine at any time.",
    )
    budget: Number | None = Field(
        None,
        gt=0,
        description="For task.yaml: the machine is taken away when it has cost so many dollars by the "
        "table of prices.",
    )


@dataclass(frozen=True)
class Machines:
    """What may be taken."""

    resources: dict[str, Any]
    most: int
    rate_each: float | None
    """Requests a second that one machine takes within the objective; None where nothing is planned."""
    dearest_per_hour: float | None
    remarks: tuple[str, ...]


def render_skypilot(request: Request) -> Files:
    """A service for `sky serve up`, and one machine for `sky launch`."""
    refuse_shared_database(request, "skypilot")
    options: SkyPilotOptions = request.options
    machines = _find_machines(request)
    most = options.max or max(options.min, machines.most)
    if options.min > most:
        message = f"min is {options.min}, more than max, {most}"
        raise SpecError([Problem("min", message)], "the options")
    header = make_header(request, "skypilot") + "".join(f"# {one}\n" for one in machines.remarks)
    task = _make_task(request, machines)
    service: dict[str, Any] = {
        "readiness_probe": {
            "path": "/readyz", "initial_delay_seconds": START_S, "timeout_seconds": 10,
        },
        "replica_policy": _make_policy(options, machines, most),
        "load_balancing_policy": "least_load",
    }  # fmt: skip
    spot = {"use_spot": True} if options.spot else {}
    one = {**task, "resources": {**task["resources"], **_make_autostop(options, machines)}}
    return {
        "service.yaml": header
        + dump_yaml({**task, "resources": {**task["resources"], **spot}, "service": service}),
        "task.yaml": header + dump_yaml(one),
    }


def _make_policy(options: SkyPilotOptions, machines: Machines, most: int) -> dict[str, Any]:
    policy: dict[str, Any] = {"min_replicas": options.min, "max_replicas": most}
    if most != options.min:
        policy["target_qps_per_replica"] = round(machines.rate_each or 1.0, 3)
    if options.spot:
        policy["dynamic_ondemand_fallback"] = True
    return policy


def _make_autostop(options: SkyPilotOptions, machines: Machines) -> dict[str, Any]:
    """Takes the machine away after the time that the budget pays for, whatever it does then."""
    if options.budget is None:
        return {}
    if machines.dearest_per_hour is None:
        message = (
            "needs prices, and no machine was planned: fetch the model first (thrifty pull), so that "
            "machines of the table are named"
        )
        raise SpecError([Problem("budget", message)], "the options")
    minutes = max(1, math.floor(options.budget / machines.dearest_per_hour * 60))
    return {"autostop": {"idle_minutes": minutes, "down": True, "wait_for": "none"}}


def _find_machines(request: Request) -> Machines:
    options: SkyPilotOptions = request.options
    table, need = load_prices(), find_container_need(request)
    names = options.clouds.split(",")
    for name in names:
        if name not in clouds():
            raise SpecError(
                [Problem("clouds", f"{name!r} is not a cloud; {suggest(name, clouds())}")],
                "the options",
            )
    common = {
        "ports": request.service.port,
        "disk_size": max(_LEAST_DISK_GIB, _IMAGE_GIB + -(-2 * need.disk_bytes // GIB)),
    }
    choices = _plan(request, need, names, table)
    if choices is None:
        memory = -(-need.memory_bytes // GIB)
        any_of = [{"infra": name} for name in names]
        resources = {"cpus": f"{need.cpus}+", "memory": f"{memory}+", "any_of": any_of, **common}
        return Machines(resources, max(1, options.min), None, None, (
            "The store does not know the model, or there are several versions: SkyPilot takes the "
            "cheapest machine that is large enough.",
        ))  # fmt: skip
    ordered = [
        {"infra": f"{_find_cloud(one, table)}/{one.region}", "instance_type": one.instance}
        for one in choices
    ]
    rate_each = min(one.tokens_per_s for one in choices) * UTILISATION / options.answer
    remarks = tuple(
        f"{one.instance} in {one.region}: {one.per_hour / one.count:.4f} {table.currency} an hour, "
        f"about {one.tokens_per_s:.0f} tokens/s"
        for one in choices
    )
    return Machines(
        {"ordered": ordered, **common}, max(one.count for one in choices), rate_each,
        max(one.per_hour / one.count for one in choices),
        (*remarks, f"Prices: {table.currency}, read on {table.read}. Speeds: docs/deploy/plan.md"),
    )  # fmt: skip


def _find_cloud(choice: Choice, table: PriceTable) -> str:
    return next(
        one.cloud for one in table.machines
        if (one.instance, one.region) == (choice.instance, choice.region)
    )  # fmt: skip


def _plan(request: Request, need: Need, names: list[str], table: PriceTable) -> list[Choice] | None:
    """Machines that meet the objective and hold the container, the cheapest first; None where the
    model's size is not known or there is more than one version. Raises `SpecError` where there is none.
    """
    options: SkyPilotOptions = request.options
    versions = request.service.own_versions
    if len(request.service.versions) != 1 or len(versions) != 1:
        return None
    version = versions[0]
    if not version.engine.traits.loads_model or find_artifact(version, request.store) is None:
        return None
    load = Load(options.rate, options.tpot, options.context)
    # The container is for x86, and is started without accelerators.
    fitting = tuple(
        one
        for name in names
        for one in table.of_cloud(name)
        if one.accelerator is None and one.architecture == "x86_64"
        and one.vcpus >= need.cpus and one.memory_bytes >= need.memory_bytes
    )  # fmt: skip
    shape = find_shape(version, request.store)
    choices = [one for one in make_plan(version, shape, load, fitting, table) if one.meets_slo]
    if not choices:
        message = (
            f"no machine of {', '.join(names)} in the table of prices holds this service and keeps to "
            f"{load.tpot_s * 1000:.0f} ms a token; see thrifty deploy plan"
        )
        raise SpecError([Problem("tpot", message)], "the plan")
    return choices[:_CHOICES]


def _make_task(request: Request, machines: Machines) -> dict[str, Any]:
    options: SkyPilotOptions = request.options
    secrets = list_secret_variables(request)
    optional = request.service.credential_variables()
    variables = [SPEC_VARIABLE, *secrets, *optional]
    command = [
        "docker", "run", "--rm", "--init", "--name", options.name,
        "--publish", f"{request.service.port}:{request.service.port}",
        "--volume", f"{options.name}:{HOME}", "--read-only", "--tmpfs", "/tmp",  # noqa: S108
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        *(part for name in variables for part in ("--env", name)),
        options.image, *make_arguments(f"env:{SPEC_VARIABLE}"),
    ]  # fmt: skip
    return {
        "name": options.name,
        "resources": machines.resources,
        "envs": {SPEC_VARIABLE: make_spec_text(request)},
        # Given when it is started (--secret NAME takes it from the environment); empty ones need not be.
        "secrets": {**dict.fromkeys(secrets), **dict.fromkeys(optional, "")},
        "run": "".join(f'test -n "${one}" || unset {one}\n' for one in optional)
        + f"exec {shlex.join(command)}\n",
    }


def make_sky_commands(request: Request, place: Place) -> Commands:
    """A service of SkyServe."""
    secrets = list_secret_variables(request)
    optional = [name for name in request.service.credential_variables() if os.environ.get(name)]
    given = tuple(part for name in (*secrets, *optional) for part in ("--secret", name))
    file = str(place.folder / "service.yaml")
    serve = ("sky", "serve")
    return Commands(
        install='pip install "skypilot[aws,gcp,azure]", then sky check',
        steps=(
            Step(
                f"the service {place.name}",
                (*serve, "up", file, "--service-name", place.name, "--yes", *given),
                ((*serve, "down", place.name, "--yes"),),
                exists=(*serve, "status", place.name, "--endpoint"),
                change=(*serve, "update", place.name, file, "--yes", *given),
            ),
        ),
        status=(*serve, "status", place.name),
        logs=(*serve, "logs", place.name, "--load-balancer", "--no-follow", "--tail", LINES),
        variables=tuple(secrets),
    )


def find_sky_cost(request: Request) -> Cost:
    """Of the machines, as far as they were planned."""
    machines, table = _find_machines(request), load_prices()
    options: SkyPilotOptions = request.options
    if machines.dearest_per_hour is None:
        return Cost("What SkyPilot takes: it shows the price before it starts.", None)
    most = options.max or max(options.min, machines.most)
    month = most * machines.dearest_per_hour * HOURS_A_MONTH
    text = (
        f"at most {machines.dearest_per_hour:.4f} {table.currency} an hour for each of up to {most} "
        f"machines, {month:.0f} a month, and SkyServe's own controller; {table.describe_age()}"
    )
    return Cost(text, month)


TARGET = Target(
    name="skypilot",
    summary="Virtual machines of AWS, Google and Azure by SkyPilot: a service, and one machine",
    options=SkyPilotOptions,
    cannot=(
        *CANNOT_SHARE,
        "SkyServe's load balancer speaks plain HTTP: end TLS in front of it.",
        "It names no machines with accelerators: use kubernetes, helm or ray for versions of the engine "
        "vllm on GPUs.",
        "`budget` bounds task.yaml alone: SkyServe takes no machine away by itself but for scaling.",
        "The image must be public, or the machines' docker must be logged in to its registry.",
    ),
    render=render_skypilot,
    commands=make_sky_commands,
    cost=find_sky_cost,
    next_steps=(
        "sky serve up DIR/service.yaml -n thrifty --secret THRIFTY_ADMIN_KEY --secret "
        "THRIFTY_VIEWER_KEY, or sky launch DIR/task.yaml for one machine   (docs/deploy/skypilot.md)"
    ),
)
