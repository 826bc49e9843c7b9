"""Environments of engines: made by the real pip from an index on this machine, whole or not at all."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts.test_pypi import index, publish  # noqa: F401 - a fixture
from tests.artifacts.web import WebServer, running_web
from tests.parts import wait_until
from thrifty.engines.environments import EnginePackages, Environment
from thrifty.errors import EngineError
from thrifty.home import Home
from thrifty.types import Progress, ignore_progress

pytestmark = pytest.mark.slow  # pip runs


@pytest.fixture
def web() -> Iterator[WebServer]:
    with running_web() as server:
        yield server


def make(home: Path, text: str = "tiny-engine==1.0\n", imports: str = "tiny_engine") -> Environment:
    return Environment(EnginePackages("tiny", text, imports, 1000, 2000), Home(home))


def offer(web: WebServer, code: str = "VALUE = 7\n") -> None:
    publish(web, "tiny-engine", {"tiny_engine/__init__.py": code.encode()})


def test_environment_is_made_once_and_runs(index: WebServer, tmp_path: Path) -> None:  # noqa: F811
    offer(index)
    environment = make(tmp_path)
    assert (environment.installed, environment.describe()) == (False, None)
    steps: list[Progress] = []
    made = environment.install(steps.append)
    assert made.packages == {"tiny-engine": "1.0"}
    assert environment.describe() == made
    assert {step.step for step in steps} == {"resolve_packages", "download", "install"}
    said = subprocess.run(
        [environment.python, "-c", "import tiny_engine; print(tiny_engine.VALUE)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "7\n"
    asked = len(index.log)
    assert environment.install(steps.append) == made
    assert len(index.log) == asked
    # Other packages are another environment; this one goes on.
    assert not make(tmp_path, "tiny-engine==2.0\n").installed
    environment.remove()
    assert not environment.installed
    assert not environment.folder.exists()


def test_hash_that_is_not_the_pinned_one_is_refused(
    index: WebServer, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    offer(index)
    wrong = hashlib.sha256(b"another").hexdigest()
    environment = make(tmp_path, f"tiny-engine==1.0 --hash=sha256:{wrong}\n")
    with pytest.raises(EngineError, match="'tiny'"):
        environment.install(ignore_progress)
    assert not environment.installed


def test_offline_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(EngineError, match=r"is not installed.*PIP_FIND_LINKS"):
        make(tmp_path).install(ignore_progress)


def test_packages_that_do_not_run_here_are_no_environment(
    index: WebServer, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    offer(index, "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    environment = make(tmp_path)
    with pytest.raises(EngineError, match=f"ends with signal {int(signal.SIGILL)}"):
        environment.install(ignore_progress)
    assert not environment.installed


_INSTALLER = """
import sys
from pathlib import Path
from thrifty.engines.environments import EnginePackages, Environment
from thrifty.home import Home
from thrifty.types import ignore_progress
packages = EnginePackages("tiny", "tiny-engine==1.0\\n", "tiny_engine", 1000, 2000)
Environment(packages, Home(Path(sys.argv[1]))).install(ignore_progress)
"""


def test_killed_installation_is_resumed_by_the_next(
    index: WebServer, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    files = {"tiny_engine/__init__.py": b"", "tiny_engine/data": b"x" * 2_000_000}
    page = publish(index, "tiny-engine", files)
    page.pause_after = 1_500_000
    victim = subprocess.Popen([sys.executable, "-c", _INSTALLER, str(tmp_path)])
    wait_until(lambda: sum(p.stat().st_size for p in tmp_path.rglob("*.whl.part")) > 1_400_000, 60)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    page.pause_after = None
    page.go_on.set()
    (part,) = tmp_path.rglob("*.whl.part")
    kept = part.stat().st_size
    environment = make(tmp_path)
    # As one that was killed a little later leaves it: a folder without its note.
    environment.folder.mkdir(parents=True)
    (environment.folder / "half").touch()
    assert not environment.installed
    environment.install(ignore_progress)
    assert environment.installed
    assert not (environment.folder / "half").exists()
    assert page.requests[-1] == f"bytes={kept}-"


def test_two_at_once_install_once(index: WebServer, tmp_path: Path) -> None:  # noqa: F811
    offer(index)
    threads = [
        threading.Thread(target=make(tmp_path).install, args=(ignore_progress,)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make(tmp_path).installed
    wheels = [path for _, path, _ in index.log if path.endswith(".whl")]
    assert len(wheels) == 1
