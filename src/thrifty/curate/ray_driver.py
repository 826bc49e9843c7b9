"""The process that speaks with Ray for a build: `ray_pieces` says what it reads and writes."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from thrifty.curate.ray_pieces import NodeMaker
from thrifty.errors import DataError, ThriftyError
from thrifty.ray_connection import connect


def run(job: dict[str, Any], emit: Any) -> None:
    """Make the job's pieces, and emit a line for each. Raises `ThriftyError`."""
    connect(job["address"], named="--ray")
    try:
        from ray.data import ActorPoolStrategy, DataContext

        import ray
    except ImportError as error:
        raise DataError(
            f"Ray Data is not installed here ({error}): pip install 'thrifty[ray-data]', on the nodes, too"
        ) from None
    DataContext.get_current().enable_progress_bars = False
    numbers = [{"piece": one["number"]} for one in job["pieces"]]
    slots = min(len(numbers), max(1, int(ray.cluster_resources().get("CPU", 1))))
    made = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        NodeMaker, fn_constructor_args=(job,), batch_size=1, num_cpus=1,
        compute=ActorPoolStrategy(min_size=1, max_size=slots),
    )  # fmt: skip
    for row in made.iter_rows():
        emit({"error": row["error"]} if row["error"] else {"piece": int(row["piece"])})


def main() -> None:
    """See the module's docstring."""
    # Ray prints; answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    status = 0
    try:
        run(job, emit)
    except ThriftyError as error:
        emit({"error": str(error)})
        status = 1
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        emit(
            {"error": f"the build on the Ray cluster at {job['address']} failed: {lines[-1][:400]}"}
        )
        status = 1
    # Ray's own goodbye may wait for a head that is away.
    os._exit(status)


def _end_with_input() -> None:
    """End when the build does."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
