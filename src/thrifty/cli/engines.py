"""`thrifty engines`: which engines there are, what is installed of them, and what they can do here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from thrifty.cli.show import print_json, print_line, print_table, show_progress, tell
from thrifty.engines.base import Engine
from thrifty.engines.machine import Machine, detect_machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.errors import EngineError
from thrifty.home import Home, find_home
from thrifty.units import format_bytes

WITH_THRIFTY, INSTALLED, NOT_INSTALLED = "with Thrifty", "installed", "not installed"


def run_engines(*, as_json: bool) -> None:
    """List every engine."""
    machine, home = detect_machine(), find_home()
    found = [_describe(find_engine(kind), machine, home) for kind in engine_kinds()]
    if as_json:
        print_json({"engines": found})
        return
    rows = [
        (one["engine"], one["state"], one["version"] or "", _say_size(one), _say_use(one))
        for one in found
    ]
    print_table(("engine", "packages", "version", "size", "here"), rows)
    print_line("what each can do here: thrifty doctor")
    for one in found:
        if one["state"] == NOT_INSTALLED:
            print_line(f"to install it: thrifty engines install {one['engine']}")


def run_install(kind: str, *, as_json: bool) -> None:
    """Install what an engine needs, unless it is there."""
    engine, home, machine = find_engine(kind), find_home(), detect_machine()
    if engine.traits.find_environment is None or engine.traits.comes_with_thrifty:
        raise EngineError(f"the engine {kind!r} comes with Thrifty; there is nothing to install")
    lines = engine.capabilities(machine)
    if not any(line.usable for line in lines):
        raise EngineError(f"the engine {kind!r} cannot run here: {lines[0].reason}")
    environment = engine.traits.find_environment(home)
    if not environment.installed:
        tell(f"the engine {kind!r}: {environment.say_size()}, in {environment.folder}")
    with show_progress() as on_progress:
        made = environment.install(on_progress)
    if as_json:
        print_json(_describe(engine, machine, home))
        return
    print_line(
        f"the engine {kind!r} is installed: {len(made.packages)} packages, "
        f"{format_bytes(made.size_bytes)}"
    )


def _describe(engine: Engine, machine: Machine, home: Home) -> dict[str, Any]:
    """One engine, as `--json` shows it."""
    traits = engine.traits
    environment = traits.find_environment(home) if traits.find_environment is not None else None
    there = environment.describe() if environment is not None else None
    state = INSTALLED if there is not None else NOT_INSTALLED
    if traits.comes_with_thrifty:
        state = WITH_THRIFTY
    capabilities = engine.capabilities(machine)
    return {
        "engine": engine.kind,
        "state": state,
        "version": traits.find_version() or None,
        "python": str(environment.python) if environment is not None and there else None,
        "size_bytes": there.size_bytes if there is not None else None,
        "download_bytes": environment.packages.download_bytes if environment is not None else None,
        "installed_bytes": environment.packages.installed_bytes
        if environment is not None
        else None,
        "runs_here": any(one.usable for one in capabilities),
        "capabilities": [asdict(one) for one in capabilities],
    }


def _say_size(one: dict[str, Any]) -> str:
    if one["size_bytes"] is not None:
        return format_bytes(one["size_bytes"])
    if one["state"] != NOT_INSTALLED:
        return ""
    download, disk = format_bytes(one["download_bytes"]), format_bytes(one["installed_bytes"])
    return f"{download} to download, {disk} of disk"


def _say_use(one: dict[str, Any]) -> str:
    if one["runs_here"]:
        return "yes"
    return f"no: {one['capabilities'][0]['reason']}"
