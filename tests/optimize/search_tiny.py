"""The search of a tiny model that tests run, also as a process of its own that they kill."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from thrifty.artifacts import Store
from thrifty.engines.machine import detect_machine
from thrifty.home import Home
from thrifty.optimize.candidate import Candidate, Candidates, Recipe, Settings
from thrifty.optimize.run import OptimizeRequest, optimize

CRASHING = Candidate(Recipe("int8"), Settings(1, (("kv_cache", 1000),)), ("kv_precision",))
"""Its KV cache is too small for the engine to start."""
CANDIDATES = Candidates(
    (
        Candidate(Recipe("int8"), Settings(), ("kv_precision",)),
        Candidate(Recipe("none"), Settings(), ("kv_precision",)),
        CRASHING,
        Candidate(Recipe("int8"), Settings(2), ("kv_precision",)),
    )
)


def narrow(_: Candidates) -> Candidates:
    """A few candidates, one of which cannot start."""
    return CANDIDATES


def make_request(home: Home, **changes: Any) -> OptimizeRequest:
    """The search that tests run."""
    request = OptimizeRequest(
        "tiny", 0.2, load="2", budget_s=1800.0, load_s=3, domains=(f"judged={home.root / 'judged.txt'}",),
        text=[str(home.root / "learned.txt")],
    )  # fmt: skip
    return replace(request, **changes)


if __name__ == "__main__":
    here = Home(Path(sys.argv[1]))
    optimize(
        make_request(here), store=Store(here.models), home=here, machine=detect_machine(),
        find_candidates=narrow,
    )  # fmt: skip
