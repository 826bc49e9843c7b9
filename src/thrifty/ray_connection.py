"""Connecting with a Ray cluster for one piece of work, and what is said where that fails."""

from __future__ import annotations

import socket

from thrifty.errors import FleetError

CONNECT_S = 5.0
"""Ray's own attempts take longer."""


def connect(address: str, named: str) -> None:
    """Connect this process with the cluster whose head is at `address` (HOST:PORT); `named` is the
    setting that gives it. Raises `FleetError`.
    """
    try:
        import ray
    except ImportError:
        raise FleetError(
            "Ray is not installed here: pip install 'thrifty[ray]', with the versions of the cluster"
        ) from None
    try:
        check_port(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise FleetError(explain_connection(error, address, named)) from None


def check_port(address: str) -> None:
    """Raise `OSError` where nobody listens; Ray itself would wait long."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ConnectionError(f"{address!r} is not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


def shorten_error(error: BaseException) -> str:
    """The last line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:400]


def explain_connection(error: BaseException, address: str, named: str) -> str:
    """Why Ray cannot be used at `address`, and what to do."""
    text = str(error)
    if "ersion mismatch" in text:
        found = " ".join(text.split())
        return (
            f"the Ray cluster at {address} runs another version: {found[:400]} Install the same "
            "versions of Ray and Python here and on every node"
        )
    if isinstance(error, OSError) or "GCS" in text:
        why = getattr(error, "strerror", None) or shorten_error(error)
        return (
            f"no Ray head answers at {address} ({why}); start one there (ray start --head "
            f"--port=PORT), or correct {named}"
        )
    return (
        f"Ray at {address} cannot be used from here: {shorten_error(error)}. The work begins on a node "
        f"of the cluster; to make this machine one: ray start --address={address} --num-cpus=0"
    )
