"""What all tests share: coroutine tests, a home of their own, and real parts to put together."""

from __future__ import annotations

import asyncio
import inspect
import os
from pathlib import Path

import pytest

from thrifty.home import HOME_VARIABLE, Home

TEST_TIMEOUT_S = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests in an event loop of their own, which must be left clean."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def run() -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests must not leak into them."""
    for name in list(os.environ):
        if name.startswith("THRIFTY_") and name not in (HOME_VARIABLE, "THRIFTY_TEST_HOME"):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home, named by the environment too."""
    root = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(root))
    return Home(root)


@pytest.fixture(scope="session")
def model_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that keeps its models for the whole run. One service at a time may use it.

    `THRIFTY_TEST_HOME` names one that outlives the run, which saves the downloads.
    """
    named = os.environ.get("THRIFTY_TEST_HOME")
    path = Path(named) if named else tmp_path_factory.mktemp("models")
    path.mkdir(parents=True, exist_ok=True)
    return path
