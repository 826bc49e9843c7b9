"""`python -m thrifty.improve.process DEPLOYMENT REASON`: a turn that the schedule began.

The controller starts it as a child (`control/improving`). It ends when the release has begun, which
the controller carries out; killed, the next one goes on where it was.
"""

from __future__ import annotations

import signal
import sys

from thrifty.artifacts import Store
from thrifty.engines.machine import detect_machine
from thrifty.errors import ThriftyError
from thrifty.fleet.controller_note import open_home
from thrifty.home import find_home
from thrifty.improve.run import open_turn, run_turn
from thrifty.improve.turn import Turn


def main() -> int:
    """One turn, without waiting for its release."""
    deployment, reason = sys.argv[1:3]
    # What it started, such as a replica that is asked, ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    home = find_home()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    try:
        with open_home(home) as database:
            turn = open_turn(
                Turn, database, deployment, home=home, store=Store(home.models),
                machine=detect_machine(), who=f"schedule ({reason})", on_note=tell,
            )  # fmt: skip
            run = run_turn(turn, began_by=reason, wait=False)
            tell(f"run {run.id} of {deployment}: {run.state}: {run.message}")
    except ThriftyError as error:
        tell(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        tell(f"stopped; the next service goes on with the run of {deployment}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
