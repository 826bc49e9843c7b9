"""Programs of others for these tests: Debian's Prometheus with promtool, and an OTLP collector.

What is on the PATH is taken. Else Debian's package is fetched and unpacked into the folder of test
environments; nothing is installed on the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.peers.environments import make_environment
from thrifty.fleet.ports import find_free_port

COLLECTOR = "oteltap==1.0.0"
START_TIMEOUT_S = 60.0


def find_program(name: str) -> Path:
    """`prometheus` or `promtool`. Skips the test, and says so, where there is none."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip(f"NOT CHECKED: there is no {name} here, and no apt to fetch Debian's with")
    root = Path(os.environ.get("THRIFTY_TEST_ENVIRONMENTS") or Path.home() / ".cache/thrifty-tests")
    folder = root / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    with (root / "prometheus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = folder / "usr" / "bin" / name
        if not program.exists():
            fetched = subprocess.run(
                ["apt-get", "download", "prometheus"], cwd=folder, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            packages = sorted(folder.glob("prometheus_*.deb"))
            if not packages:
                pytest.skip(f"NOT CHECKED: Debian's prometheus cannot be had: {fetched.stderr}")
            subprocess.run(["dpkg-deb", "-x", packages[-1], folder], check=True)
        return program


def run_promtool(
    *arguments: str, stdin: str | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """One run of promtool."""
    return subprocess.run(
        [find_program("promtool"), *arguments], input=stdin, cwd=folder, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **query: str) -> Any:
        """What its API answers."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return msgspec.json.decode(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    def query(self, expr: str) -> list[Any]:
        """The samples of a query now."""
        return list(self.ask("query", query=expr)["result"])


@contextlib.contextmanager
def running_prometheus(config: Path, data: Path) -> Iterator[Prometheus]:
    """Debian's Prometheus with this configuration, until the block ends."""
    port = find_free_port()
    output = data.with_suffix(".out")
    with output.open("w") as file:
        process = subprocess.Popen(
            [
                find_program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={data}",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
            ],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline_s, output.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/-/ready", timeout=5).close()
                break
            time.sleep(0.1)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def running_collector(folder: Path) -> Iterator[tuple[str, Path]]:
    """`oteltap`, an OTLP receiver in Rust, until the block ends; its URL, and the file in which it
    writes what it gets, one JSON object a line.
    """
    python = make_environment("oteltap", COLLECTOR)
    port, output = find_free_port(), folder / "collector.out"
    with output.open("w") as file:
        process = subprocess.Popen(
            [python, "-u", "-m", "oteltap", "--port", str(port)],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while "Listening" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline_s, output.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", output
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    sys.stdout.write(f"{find_program('prometheus')}\n")
