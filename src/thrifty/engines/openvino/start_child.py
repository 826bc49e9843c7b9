"""Starts a process of a replica. Imports next to nothing, so that the worker can load its model
while its server is still importing what it needs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

WORKER = "thrifty.engines.openvino.worker"


class StartedChild(NamedTuple):
    """A process that was started, and our end of the socket to it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket


def start_child(module: str, settings: Mapping[str, Any]) -> StartedChild:
    """Run `module` with the number of its socket and `settings`, as JSON, as arguments. Raises
    `OSError`.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), json.dumps(settings)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            ours.close()
            raise
    ours.setblocking(False)
    return StartedChild(process, ours)
