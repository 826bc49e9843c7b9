"""`thrifty doctor`: what can run here, and which form of the weights is fast here."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

from thrifty.artifacts import Store
from thrifty.artifacts.measurements import Measurement
from thrifty.artifacts.sources import fetch_model
from thrifty.cli.show import print_json, print_line, print_table, show_progress
from thrifty.engines.choice import Candidate, KeptChoice, list_choices
from thrifty.engines.machine import FEATURES, Machine, available_memory_bytes, detect_machine
from thrifty.engines.registry import choose_engine, engine_kinds, find_engine
from thrifty.engines.scheme_choice import (
    SchemeChoice,
    decide,
    describe_speed,
    find_measured_model,
)
from thrifty.errors import BenchError
from thrifty.home import Home, find_home
from thrifty.spec import Spec
from thrifty.units import format_bytes


def run_doctor(*, measure: bool, model: str | None, again: bool, as_json: bool) -> None:
    """Print what this machine is, what each engine can do on it, and what `compress: auto` takes.
    Only with `measure` is a model run.
    """
    if model is not None and not measure:
        raise BenchError("--model names what is measured; add --measure")
    if again and not measure:
        raise BenchError("--again says how to measure; add --measure")
    machine = detect_machine()
    home = find_home()
    store = Store(home.models)
    engine = choose_engine("auto", None)
    if measure:
        _measure(model or Spec().model, store, home, machine, again=again)
    measured = find_measured_model(store, engine, machine, engine.traits.auto_schemes)
    if measured is None:
        choice = SchemeChoice(**asdict(engine.find_default_scheme(machine)))
    else:
        choice = decide(*measured, engine.traits.auto_schemes)
    speeds = [] if measured is None else _list_speeds(*measured)
    choices = list_choices(store, machine)
    existing = next(path for path in (home.root, *home.root.parents) if path.exists())
    disk_free = shutil.disk_usage(existing).free
    engines = {kind: find_engine(kind).capabilities(machine) for kind in engine_kinds()}
    if as_json:
        print_json(
            {
                "machine": {
                    **asdict(machine),
                    "id": machine.id,
                    "features": sorted(machine.features),
                    "memory_available_bytes": available_memory_bytes(),
                },
                "home": {"path": str(home.root), "disk_free_bytes": disk_free},
                "engines": {kind: [asdict(c) for c in found] for kind, found in engines.items()},
                "auto": {"engine": engine.kind, **asdict(choice)},
                "measured": speeds,
                "choices": [one.to_builtins() for one in choices],
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
    print_line()
    print_line(f"compress: auto takes {choice.scheme}: {choice.reason}")
    for one in speeds:
        print_line(f"  {one['scheme']:<5} {one['speed']}")
    if measured is None:
        print_line("  measure it here: thrifty doctor --measure")
    for kept in choices:
        _show_choice(kept)


def _show_choice(kept: KeptChoice) -> None:
    streams = " and ".join(str(count) for count in kept.load["streams"])
    print_line()
    print_line(f"auto takes {kept.choice.candidate} for {kept.model} at {streams} streams:")
    for row in kept.choice.measured:
        said = Candidate(row["engine"], row["scheme"], tuple(row["options"].items()))
        print_line(f"  {said!s:<20} {row['says']}")


def _measure(model: str, store: Store, home: Home, machine: Machine, *, again: bool) -> None:
    from thrifty.choice_benchmark import ChoiceRequest, measure_choice

    with show_progress() as on_progress:
        version, artifact = fetch_model(store, model, on_progress=on_progress)
        request = ChoiceRequest(version, artifact, Spec())
        measure_choice(request, store, home, machine, on_progress, again=again)


def _list_speeds(model: str, measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    """What was measured, by scheme."""
    return [
        {
            "model": model,
            "scheme": scheme,
            "tokens_per_s": one.values["tokens_per_s"],
            "speed": describe_speed(one),
            "busy_before": one.values["busy_before"],
            "measured": one.measured,
        }
        for scheme, one in measured.items()
    ]
