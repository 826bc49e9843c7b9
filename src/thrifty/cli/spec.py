"""`thrifty spec`: check and explain."""

from __future__ import annotations

from pathlib import Path

from thrifty.cli.show import print_json, print_line, print_table
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.errors import Problem
from thrifty.spec import load_spec
from thrifty.spec.load import suggest


def run_spec(path: Path | None, *, explain: bool, as_json: bool) -> None:
    """Check a spec; show what it comes to."""
    loaded = load_spec(path)
    kind = loaded.spec.engine.kind
    if kind != "auto":
        if kind not in engine_kinds():
            hint = suggest(kind, ["auto", *engine_kinds()])
            loaded.refuse([Problem("engine.kind", f"{kind!r} is not an engine; {hint}")])
        loaded.refuse(find_engine(kind).check(loaded.spec, None, detect_machine()))
    rows = loaded.explain()
    if as_json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
    elif explain:
        print_table(("key", "value", "from"), rows)
    else:
        for key, value, _ in rows:
            print_line(f"{key}: {value}")
