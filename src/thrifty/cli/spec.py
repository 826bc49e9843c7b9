"""`thrifty spec`: check and explain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thrifty.cli.show import print_json, print_line, print_table
from thrifty.control.checks import check_spec
from thrifty.engines.machine import detect_machine
from thrifty.spec import load_spec


def run_spec(path: Path | None, *, explain: bool, as_json: bool) -> None:
    """Check a spec; show what it comes to."""
    loaded = load_spec(path)
    check_spec(loaded, detect_machine())
    rows = loaded.explain()
    if as_json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
    elif explain:
        print_table(("key", "value", "from"), [(k, _show(v), origin) for k, v, origin in rows])
    else:
        for key, value, _ in rows:
            print_line(f"{key}: {_show(value)}")


def _show(value: Any) -> str:
    """A value as it can be written in a spec."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
