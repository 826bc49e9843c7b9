"""Real servers that are slow, away, full or out of quota, and processes that are killed beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.artifacts.remotes.conftest import SERVERS
from tests.artifacts.remotes.places import Place
from tests.artifacts.remotes.proxy import Proxy, running_proxy
from tests.artifacts.remotes.servers import Server, start_server
from tests.artifacts.remotes.test_killed import KILLED
from tests.artifacts.stored import put
from tests.artifacts.web import running_web
from thrifty.artifacts import Store
from thrifty.artifacts.remotes import pull, push
from thrifty.errors import RemoteError
from thrifty.types import Progress

pytestmark = pytest.mark.remote
SIZE = 36_000_000
"""Of the largest file: several parts of an upload."""


@dataclass
class Reached:
    """A remote that is reached through a proxy."""

    place: Place
    proxy: Proxy
    server: Server


@pytest.fixture(params=SERVERS)
def reached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reached]:
    with running_proxy() as proxy:
        # Google's store says where uploads go on, which must be the proxy.
        server = start_server(request.param, proxy.url if request.param == "gs" else "")
        proxy.target = urlsplit(server.url).port or 0
        for name, value in server.through(proxy.url).items():
            monkeypatch.setenv(name, value)
        place = server.make_place()
        place.url = place.url.replace(urlsplit(server.url).netloc, urlsplit(proxy.url).netloc)
        yield Reached(place, proxy, server)


def test_connections_that_break_in_the_middle(store: Store, other: Store, reached: Reached) -> None:
    """Push and pull go on by themselves, and what arrives is whole."""
    _, artifact = put(store, size=SIZE, filling=31)
    faults = reached.proxy.faults
    faults.break_after = [SIZE // 3, SIZE // 2]
    push(store, "tiny", reached.place.url)
    assert faults.broken == 2
    faults.upwards, faults.passed, faults.break_after = False, 0, [SIZE // 3, SIZE // 2]
    pulled = pull(other, reached.place.reference("tiny", 1))
    assert faults.broken == 4
    assert pulled.artifact == artifact
    other.verify(artifact, thorough=True)


def test_a_store_that_goes_away(store: Store, other: Store, reached: Reached) -> None:
    """An error that says so; then both go on where they were."""
    _, artifact = put(store, size=SIZE, filling=32)
    faults = reached.proxy.faults

    faults.away = True
    with pytest.raises(RemoteError, match=r"does not answer|failed"):
        push(store, "tiny", reached.place.url)
    faults.away = False
    pushed = push(store, "tiny", reached.place.url)
    assert pushed.created

    def leave_in_the_middle(progress: Progress) -> None:
        if progress.step == "download" and progress.done > progress.total / 2:
            faults.away = True

    with pytest.raises(RemoteError, match=r"what came so far is kept|does not answer|failed"):
        pull(other, reached.place.reference("tiny", 1), on_progress=leave_in_the_middle)
    assert not other.versions()
    faults.away = False
    pulled = pull(other, reached.place.reference("tiny", 1))
    assert pulled.artifact == artifact
    assert pulled.moved_bytes < artifact.size_bytes


def test_a_slow_store(store: Store, other: Store, reached: Reached) -> None:
    """Slowness is no fault."""
    _, artifact = put(store, size=3_000_000, filling=33)
    reached.proxy.faults.bytes_per_s = 3_000_000
    push(store, "tiny", reached.place.url)
    assert pull(other, reached.place.reference("tiny", 1)).artifact == artifact


def test_killed_push_and_pull(store: Store, other: Store, reached: Reached) -> None:
    _, artifact = put(store, size=SIZE, filling=34)
    reference = reached.place.reference("tiny", 1)
    environment = {**os.environ, **reached.server.through(reached.proxy.url)}
    # The script adds the name, which registries do not have.
    script = KILLED.replace('sys.argv[3] + "/tiny"', "sys.argv[4]")
    for step, one in (("upload", store), ("download", other)):
        done = subprocess.run(
            [sys.executable, "-c", script, step, str(one.root), reached.place.url, reference],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        if step == "upload":
            with pytest.raises(RemoteError):
                pull(other, reference)
            assert push(store, "tiny", reached.place.url).created
    pulled = pull(other, reference)
    assert pulled.artifact == artifact
    assert pulled.moved_bytes < artifact.size_bytes / 2


QUOTA = b"QuotaExceeded: the project has no storage left"


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("status", [403, 507])
def test_a_quota(store: Store, kind: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store says of its quota reaches the user, once for a final answer; nothing is left."""
    put(store)
    server = start_server(kind)
    with running_web() as web:
        web.fallback = lambda method, path: (
            (status, {}, QUOTA) if method in ("PUT", "POST") else (404, {}, b"")
        )
        for name, value in server.through(web.url).items():
            monkeypatch.setenv(name, value)
        place = server.make_place()
        url = place.url.replace(urlsplit(server.url).netloc, urlsplit(web.url).netloc)
        with pytest.raises(RemoteError, match="QuotaExceeded") as error:
            push(store, "tiny", url)
    assert str(status) in str(error.value)
    assert "test:test" not in str(error.value)
