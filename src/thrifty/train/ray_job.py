"""Runs the process of a training on a node of a Ray cluster, and passes its lines on.

The folder of the training and the model store are on a file system that the node sees under the
same paths. Ray chooses the node by what the training asks for: a GPU for each of its processes
where the cluster has any, else cores. It ends with the process that asked for it, and its
checkpoints stay.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from thrifty.errors import ThriftyError
from thrifty.ray_connection import connect, shorten_error
from thrifty.train.process import PARENT, make_command, make_environment, tell
from thrifty.version import __version__


def follow_training(
    module: str, folder: str, processes: int, version: str
) -> Iterator[bytes | int]:
    """The lines of a training that runs on this node, and its exit status as the last item."""
    fault = find_fault(folder, version)
    if fault is not None:
        yield tell(error=fault)
        yield 1
        return
    environment = {**make_environment(), PARENT: str(os.getpid())}
    with (
        (Path(folder) / "worker.log").open("ab") as log,
        subprocess.Popen(
            make_command(module, Path(folder), processes), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=log, env=environment,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        # Ray sends values into its generators, which files do not take.
        yield from (line for line in process.stdout)
    yield process.returncode


def find_fault(folder: str, version: str) -> str | None:
    """Why a training cannot run on this node, if it cannot."""
    node = socket.gethostname()
    if version != __version__:
        return (
            f"the node {node} has Thrifty {__version__}, and this machine {version}; install the same "
            "release everywhere"
        )
    if not (Path(folder) / "job.json").exists():
        return (
            f"the node {node} does not see {folder}; put THRIFTY_HOME on a file system that all nodes "
            "mount at the same path"
        )
    return None


def run(
    address: str, module: str, folder: str, processes: int, write: Callable[[bytes], object]
) -> int:
    """Run a training on the cluster, and write its lines; its exit status. Raises
    `ThriftyError`.
    """
    connect(address, named="--ray")
    import ray

    there = ray.cluster_resources()
    with_gpus = there.get("GPU", 0) >= 1
    wanted = {"num_gpus": processes, "num_cpus": 0} if with_gpus else {"num_cpus": processes}
    task = ray.remote(max_retries=0, **wanted)(follow_training)
    items = task.options(num_returns="streaming").remote(module, folder, processes, __version__)
    status = 1
    for item in items:
        found = ray.get(item)
        if isinstance(found, int):
            status = found
        else:
            write(found)
    return status


def main() -> None:
    """`ADDRESS MODULE FOLDER PROCESSES`: see the module's docstring."""
    address, module, folder, processes = sys.argv[1:]
    # The lines of the training have a descriptor of their own: Ray prints, too.
    write = os.fdopen(os.dup(1), "wb", buffering=0).write
    os.dup2(2, 1)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        status = run(address, module, folder, int(processes), write)
    except ThriftyError as error:
        write(tell(error=str(error)))
        status = 1
    except Exception as error:
        fault = f"the training on the Ray cluster at {address} ended: {shorten_error(error)}"
        write(tell(error=f"{fault}. The same command goes on from the last checkpoint"))
        status = 1
    # Ray's own goodbye may wait for a head that is away.
    os._exit(status if status >= 0 else 128 - status)  # as shells tell signals


def _end_with_input() -> None:
    """End when whoever asked for the training does."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
