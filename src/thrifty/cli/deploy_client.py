"""`thrifty deploy apply`, `status`, `logs` and `destroy`, for targets with a client program."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.cli.deploy import parse_settings
from thrifty.cli.deploy_cluster import confirm
from thrifty.cli.show import print_json, print_line, tell
from thrifty.deploy.base import Request, Target, parse_target_options, refuse_fleet
from thrifty.deploy.commands import Commands, Cost, Place
from thrifty.deploy.journal import Deployments, Journal, check_programs, show_program
from thrifty.deploy.registry import find_target
from thrifty.deploy.service import make_service
from thrifty.errors import ThriftyError
from thrifty.home import find_home
from thrifty.spec import load_spec

DEFAULT_NAME = "thrifty"


@dataclass(frozen=True)
class Given:
    """What a command was told of the deployment."""

    target: str
    path: Path
    settings: Sequence[str]
    name: str | None = None
    parameters: Sequence[str] = ()
    kubeconfig: str | None = None


@dataclass(frozen=True)
class _Deployment:
    """One deployment, as the spec has it."""

    target: Target
    request: Request
    name: str
    commands: Commands

    @property
    def deployments(self) -> Deployments:
        return Deployments(find_home().deployments)

    def read_journal(self) -> Journal:
        """What was applied. Raises `ThriftyError` where nothing was."""
        journal = self.deployments.read(self.target.name, self.name)
        if journal is None:
            raise ThriftyError(
                f"nothing was applied as {self.target.name} {self.name} from this home "
                f"({find_home().root}); apply it: thrifty deploy apply {self.target.name} SPEC"
            )
        return journal


def run_apply(given: Given, budget: float | None, *, yes: bool, as_json: bool) -> None:
    """Render, say what will run and what it costs, ask, and run it."""
    one = _load(given)
    target, request = one.target, one.request
    files = target.render(request)
    cost = target.cost(request)
    _guard_budget(cost, budget)
    before = one.deployments.read(target.name, one.name)
    tell(f"{target.name} {one.name}, by {one.commands.steps[0].do[0]}:")
    for step in one.commands.steps:
        tell(f"  {step.what}: {shlex.join(step.do)}")
    tell(f"Cost: {cost.text}")
    if before is not None and not before.whole:
        tell("An earlier apply did not finish; this one goes on with it.")
    confirm("Apply this?", yes=yes, as_json=as_json)
    journal = one.deployments.apply(target.name, one.name, request.checksum, files, one.commands)
    folder = one.deployments.folder_of(target.name, one.name)
    if as_json:
        print_json(
            {
                "target": target.name, "name": one.name, "checksum": f"sha256:{journal.checksum}",
                "folder": str(folder), "cost": dataclasses.asdict(cost),
                "steps": [each.step.what for each in journal.steps],
            }
        )  # fmt: skip
        return
    print_line(f"{target.name} {one.name} is applied; the journal is {folder / 'journal.json'}.")
    tell(f"Next: thrifty deploy status {target.name} {given.path}")


def run_status(given: Given, *, as_json: bool) -> None:
    """Show the journal, and what the platform says."""
    one = _load(given)
    journal = one.read_journal()
    same = journal.checksum == one.request.checksum
    if as_json:
        print_json(
            {
                "target": journal.target, "name": journal.name, "whole": journal.whole,
                "as_spec": same, "program": list(journal.status),
                "steps": [{"what": e.step.what, "state": e.state} for e in journal.steps],
            }
        )  # fmt: skip
        return
    for each in journal.steps:
        tell(f"{each.step.what}: {each.state}")
    if not journal.whole:
        tell("The last apply did not finish: repeat it, or take it back (thrifty deploy destroy).")
    if not same:
        tell(
            f"{given.path} or its options have changed since: thrifty deploy apply {journal.target}"
        )
    check_programs(journal)
    _need_success(show_program(journal.status), journal.status)


def run_logs(given: Given, *, lines: int) -> None:
    """Print the last lines of the log, as the platform's program does."""
    journal = _load(given).read_journal()
    check_programs(journal)
    _need_success(show_program(journal.logs, lines), journal.logs)


def run_destroy(given: Given, *, data: bool, yes: bool, as_json: bool) -> None:
    """Say what goes, ask, and take it away."""
    one = _load(given)
    journal = one.read_journal()
    for each in reversed(journal.steps):
        undo = each.step.undo_data if data and each.step.undo_data else each.step.undo
        for arguments in undo:
            tell(f"  {each.step.what}: {shlex.join(arguments)}")
    confirm("Destroy this?", yes=yes, as_json=as_json)
    gone: list[str] = []
    one.deployments.destroy(journal.target, journal.name, data=data, say=gone.append)
    if as_json:
        print_json({"target": journal.target, "name": journal.name, "gone": gone})
        return
    for line in gone:
        print_line(line)


def _load(given: Given) -> _Deployment:
    target = find_target(given.target)
    if target.commands is None:
        raise ThriftyError(f"{target.name} has no client program")
    options = parse_target_options(target, parse_settings(given.settings))
    service = make_service(load_spec(given.path, environment={}))
    refuse_fleet(target, service)
    request = Request(service, options, Store(find_home().models))
    name = _find_name(target, options, given.name)
    folder = Deployments(find_home().deployments).folder_of(target.name, name) / "files"
    place = Place(name, folder, tuple(given.parameters), given.kubeconfig)
    commands = target.commands(request, place)
    if given.parameters and not commands.takes_parameters:
        raise ThriftyError(
            f"--parameter is for CloudFormation templates, and {target.name} has none"
        )
    for one in given.parameters:
        if "=" not in one:
            raise ThriftyError(f"--parameter {one}: write NAME=VALUE")
    return _Deployment(target, request, name, commands)


def _find_name(target: Target, options: object, name: str | None) -> str:
    """What it is called on the platform: the files say so, or the command does."""
    if "name" in target.options.model_fields:
        if name is not None:
            raise ThriftyError(
                f"the files of {target.name} have the name in them: --set name={name}"
            )
        return str(getattr(options, "name", DEFAULT_NAME))
    found = name or DEFAULT_NAME
    if not (found.isascii() and found.replace("-", "").isalnum() and found[0].isalpha()):
        raise ThriftyError(f"--name {found}: letters, digits and hyphens, beginning with a letter")
    return found


def _guard_budget(cost: Cost, budget: float | None) -> None:
    """Refuse what may cost more than the budget. Raises `ThriftyError`."""
    if budget is None:
        return
    if cost.most_per_month is None:
        raise ThriftyError(f"--budget cannot be kept: {cost.text} Leave --budget out to apply it.")
    if cost.most_per_month > budget:
        raise ThriftyError(
            f"it may cost {cost.most_per_month:.0f} dollars a month ({cost.text}), more than the "
            f"budget of {budget:g}; lower the most that may run (--set max=, count= or concurrency=)"
        )


def _need_success(status: int, arguments: Sequence[str]) -> None:
    if status != 0:
        raise ThriftyError(f"{shlex.join(arguments)} ended with status {status}")
