"""A version in the gateway: what clients are told of one that cannot start."""

from __future__ import annotations

import pytest

from tests.parts import replica_row
from thrifty.gateway.state.version import _find_fault
from thrifty.types import ReplicaState


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("the model needs 3 GB, 1 GB is free", "the model needs 3 GB, 1 GB is free"),
        (
            "Traceback (most recent call last):\n  File ...\nOSError: no /home/ann/models/a.gguf here",
            "OSError: no a.gguf here",
        ),
        (None, "no reason is known"),
        ("\n", "no reason is known"),
    ],
)
def test_clients_are_told_the_reason_without_folders(message: str | None, told: str) -> None:
    row = replica_row(0, "http://x", revision="r", state=ReplicaState.CRASH_LOOP, message=message)
    assert _find_fault([row], "r") == told
    assert _find_fault([row], "other") is None
