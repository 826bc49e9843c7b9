"""What all tests share: coroutine tests, a home of their own, and real parts to put together."""

from __future__ import annotations

import asyncio
import inspect
import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.environment import TemporaryHome, clear_environment
from thrifty.home import HOME_VARIABLE, Home

# Before the tests import libraries that read their settings when they are imported.
clear_environment(os.environ)

TEST_TIMEOUT_S = 180.0

# How long an example takes says more about the machine than about the code.
settings.register_profile("thrifty", deadline=None)
settings.load_profile("thrifty")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests in an event loop of their own, which must be left clean."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    own = pyfuncitem.get_closest_marker("timeout")
    timeout_s = float(own.args[0]) if own is not None else TEST_TIMEOUT_S

    async def run() -> None:
        async with asyncio.timeout(timeout_s):
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a home of its own."""
    config.add_cleanup(TemporaryHome(os.environ).remove)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home, named by the environment too."""
    root = tmp_path / "home"
    monkeypatch.setenv(HOME_VARIABLE, str(root))
    return Home(root)


@pytest.fixture(scope="session")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store that is kept for the whole run.

    `THRIFTY_TEST_HOME` names a home that outlives the run, which saves the downloads.
    """
    named = os.environ.get("THRIFTY_TEST_HOME")
    path = (Path(named) if named else tmp_path_factory.mktemp("shared")) / "models"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def model_home(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the shared models and nothing else. One service at a time may use it."""
    path = tmp_path_factory.mktemp("home")
    (path / "models").symlink_to(shared_models)
    return path
