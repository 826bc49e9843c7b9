"""`python -m thrifty.spec_worker`: plans or applies a spec for the management API, in a process of its own.

Preparing a model takes memory and processor time that a gateway worker must not lose. A request comes
as one JSON object on stdin, the answer goes to stdout as another one; messages go to stderr. The
home is the environment's.

    {"act": "plan", "spec": {...}, "reset": false, "who": "ann", "why": ""}
    {"plan": {...}, "held": ["..."]}  or  {"error": "...", "problems": [{"path", "message"}]}
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from thrifty.artifacts import Store
from thrifty.control.http_spec import check_http_spec
from thrifty.control.service_api import Actor, look_at_service, plan_spec
from thrifty.engines.machine import detect_machine
from thrifty.errors import SpecError, ThriftyError
from thrifty.home import find_home
from thrifty.model_maker import Compressor
from thrifty.service import apply_spec, require_running
from thrifty.spec import parse_spec


class SpecRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be done."""

    act: str
    """`plan`, or `apply`, which plans first."""
    spec: dict[str, Any]
    reset: bool = False
    who: str = ""
    why: str = ""


def run_request(request: SpecRequest) -> dict[str, Any]:
    """Plan, or plan and apply. Raises `ThriftyError` kinds."""
    home = find_home()
    loaded = parse_spec(request.spec)
    check_http_spec(loaded, look_at_service(home), Store(home.models))
    maker = Compressor(home, Store(home.models), detect_machine())
    if request.act == "apply":
        require_running(home)
    plan = plan_spec(loaded, home, maker=maker, reset=request.reset)
    held = [one.what for one in plan.held]
    if request.act == "apply":
        actor = Actor(request.who, request.why)
        applied = apply_spec(loaded, home, actor, reset=request.reset)
        held = [] if request.reset else [one.what for one in applied.held]
    return {"plan": plan.to_builtins(), "held": held}


def main() -> int:
    """One request from stdin to stdout."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=SpecRequest)
    try:
        answer = run_request(request)
    except SpecError as error:
        problems = [{"path": one.path, "message": one.message} for one in error.problems]
        answer = {"error": str(error), "problems": problems}
    except ThriftyError as error:
        answer = {"error": str(error), "problems": []}
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
