"""`thrifty doctor`: what can run here."""

from __future__ import annotations

import shutil
from dataclasses import asdict

from thrifty.cli.show import print_json, print_line, print_table
from thrifty.engines.machine import FEATURES, available_memory_bytes, detect_machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.home import find_home
from thrifty.units import format_bytes


def run_doctor(*, as_json: bool) -> None:
    """Print what this machine is, and what each engine can do on it."""
    machine = detect_machine()
    home = find_home()
    existing = next(path for path in (home.root, *home.root.parents) if path.exists())
    disk_free = shutil.disk_usage(existing).free
    engines = {kind: find_engine(kind).capabilities(machine) for kind in engine_kinds()}
    if as_json:
        print_json(
            {
                "machine": {
                    **asdict(machine),
                    "features": sorted(machine.features),
                    "memory_available_bytes": available_memory_bytes(),
                },
                "home": {"path": str(home.root), "disk_free_bytes": disk_free},
                "engines": {kind: [asdict(c) for c in found] for kind, found in engines.items()},
            }
        )
        return
    print_line(
        f"processor  {machine.processor} ({machine.architecture}), "
        f"{machine.core_count} cores to use"
    )
    features = [FEATURES[name] for name in FEATURES if name in machine.features]
    print_line(f"features   {', '.join(features) or 'none that matter'}")
    print_line(
        f"memory     {format_bytes(machine.memory_bytes)}, "
        f"{format_bytes(available_memory_bytes())} free"
    )
    print_line(f"home       {home.root}, {format_bytes(disk_free)} free on its disk")
    print_line()
    rows = [
        (kind, "yes" if capability.usable else "no", capability.what, capability.reason)
        for kind, found in engines.items()
        for capability in found
    ]
    print_table(("engine", "here", "what", "why"), rows)
