"""Both event loops: `asyncio`'s own, and uvloop, on which the service runs."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture(params=["asyncio", "uvloop"])
def either_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test on the loop that is named."""
    if request.param == "uvloop":
        _use_uvloop(monkeypatch)
    return request.param


@pytest.fixture
def service_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test on the service's loop alone: for tests that must wait for deadlines."""
    _use_uvloop(monkeypatch)


def _use_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(asyncio.events, "new_event_loop", uvloop.new_event_loop)
