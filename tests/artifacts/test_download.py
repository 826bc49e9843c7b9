"""Downloads resume where they stopped, whatever the server or the process did."""

from __future__ import annotations

import errno
import gzip
import hashlib
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.web import Page, WebServer
from tests.parts import wait_until
from thrifty.artifacts import Store
from thrifty.artifacts.sources import download as module
from thrifty.artifacts.sources.download import download
from thrifty.errors import ArtifactError, IntegrityError, SourceError
from thrifty.types import Progress, ignore_progress

BODY = random.Random(1).randbytes(100_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_DELAY_S", 0.001)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


def part_of(target: Path) -> Path:
    return target.with_name("file.bin.part")


def get(
    web: WebServer, target: Path, store: Store, sha256: str | None = SHA256, **more: Any
) -> list[Progress]:
    seen: list[Progress] = []
    download(f"{web.url}/file", target, sha256=sha256, store=store, on_progress=seen.append, **more)
    return seen


def test_file_arrives_whole(web: WebServer, target: Path, store: Store) -> None:
    page = web.add("/file", BODY)
    seen = get(web, target, store)
    assert target.read_bytes() == BODY
    assert not part_of(target).exists()
    assert page.requests == [None]
    assert seen[-1] == Progress("download", len(BODY), len(BODY))
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_file_that_is_there_and_right_is_not_fetched_again(
    web: WebServer, target: Path, store: Store
) -> None:
    page = web.add("/file", BODY)
    target.write_bytes(BODY)
    get(web, target, store)
    assert page.requests == []
    target.write_bytes(b"something else")
    get(web, target, store)
    assert target.read_bytes() == BODY


def test_broken_connection_is_continued(web: WebServer, target: Path, store: Store) -> None:
    page = web.add("/file", BODY, break_after=[30_000, 1, 50_000])
    get(web, target, store)
    assert target.read_bytes() == BODY
    assert page.requests == [None, "bytes=30000-", "bytes=30001-", "bytes=80001-"]
    assert page.sent == len(BODY)


def test_connection_that_breaks_often_but_always_gets_on_comes_to_an_end(
    web: WebServer, target: Path, store: Store
) -> None:
    page = web.add("/file", BODY, break_after=[8_000] * 12)
    get(web, target, store)
    assert target.read_bytes() == BODY
    assert len(page.requests) == 13


def test_server_without_ranges_sends_all_of_it_again(
    web: WebServer, target: Path, store: Store
) -> None:
    page = web.add("/file", BODY, ranges=False, break_after=[70_000])
    get(web, target, store)
    assert target.read_bytes() == BODY
    assert page.requests == [None, "bytes=70000-"]
    assert page.sent == 70_000 + len(BODY)


def test_body_without_a_length_is_whole_or_continued(
    web: WebServer, target: Path, store: Store
) -> None:
    page = web.add("/file", BODY, chunked=True, break_after=[40_960])
    get(web, target, store)
    assert target.read_bytes() == BODY
    assert page.requests == [None, "bytes=40960-"]


def test_compressed_body_is_unpacked(web: WebServer, target: Path, store: Store) -> None:
    """Some mirrors compress although the request forbids it."""
    web.add("/file", gzip.compress(BODY), headers={"content-encoding": "gzip"}, ranges=False)
    get(web, target, store)
    assert target.read_bytes() == BODY


def test_part_of_an_earlier_try_is_continued(web: WebServer, target: Path, store: Store) -> None:
    page = web.add("/file", BODY)
    part_of(target).write_bytes(BODY[:60_000])
    seen = get(web, target, store)
    assert target.read_bytes() == BODY
    assert (page.requests, page.sent) == (["bytes=60000-"], 40_000)
    assert seen[0] == Progress("download", 60_000, len(BODY))


def test_part_that_is_all_of_it_is_taken_as_it_is(
    web: WebServer, target: Path, store: Store
) -> None:
    page = web.add("/file", BODY)
    part_of(target).write_bytes(BODY)
    get(web, target, store)
    assert target.read_bytes() == BODY
    assert page.sent == 0


def test_part_that_is_too_long_is_begun_anew(web: WebServer, target: Path, store: Store) -> None:
    web.add("/file", BODY)
    part_of(target).write_bytes(BODY + b"more")
    get(web, target, store)
    assert target.read_bytes() == BODY


def test_range_that_begins_early_overwrites(web: WebServer, target: Path, store: Store) -> None:
    web.add("/file", BODY, shift=500)
    part_of(target).write_bytes(BODY[:1000])
    get(web, target, store, sha256=None)
    assert target.read_bytes() == BODY


def test_range_that_begins_late_leaves_no_hole(web: WebServer, target: Path, store: Store) -> None:
    web.add("/file", BODY, shift=-500)
    part_of(target).write_bytes(BODY[:1000])
    with pytest.raises(SourceError, match="the server started at byte 1500 instead of 1000"):
        get(web, target, store, sha256=None)
    assert part_of(target).read_bytes() == BODY[:1000]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusal_ends_it_at_once(web: WebServer, target: Path, store: Store, status: int) -> None:
    page = web.add("/file", BODY, statuses=[status] * 9)
    with pytest.raises(
        SourceError, match=rf"/file answered {status}; check the name and your access"
    ):
        get(web, target, store)
    assert len(page.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_trouble_is_tried_again(web: WebServer, target: Path, store: Store, status: int) -> None:
    web.add("/file", BODY, statuses=[status] * 3)
    get(web, target, store)
    assert target.read_bytes() == BODY


def test_lasting_trouble_ends_it_and_keeps_what_came(
    web: WebServer, target: Path, store: Store
) -> None:
    page = web.add("/file", BODY, break_after=[40_000], statuses=[0, *[500] * 9])
    with pytest.raises(
        SourceError,
        match=r"not be fetched in 5 attempts \(500 .*\); the bytes received so far are kept",
    ):
        get(web, target, store)
    assert part_of(target).read_bytes() == BODY[:40_000]
    page.statuses.clear()
    get(web, target, store)
    assert target.read_bytes() == BODY
    assert page.sent == len(BODY)


def test_server_that_is_not_there_is_named(target: Path, store: Store) -> None:
    with pytest.raises(SourceError, match=r"http://127.0.0.1:9/file could not be fetched in 5"):
        download(
            "http://127.0.0.1:9/file", target, sha256=None, store=store,
            on_progress=ignore_progress,
        )  # fmt: skip


def test_wrong_bytes_are_thrown_away(web: WebServer, target: Path, store: Store) -> None:
    page = web.add("/file", b"x" * 1000)
    with pytest.raises(
        IntegrityError, match=rf"the index says {SHA256[:12]}\.\.\.; it was deleted"
    ):
        get(web, target, store)
    assert not target.exists()
    assert not part_of(target).exists()
    page.body = BODY
    get(web, target, store)
    assert target.read_bytes() == BODY


def test_part_of_another_file_does_not_spoil_the_next_try(
    web: WebServer, target: Path, store: Store
) -> None:
    web.add("/file", BODY)
    part_of(target).write_bytes(b"old" * 1000)
    with pytest.raises(IntegrityError):
        get(web, target, store)
    get(web, target, store)
    assert target.read_bytes() == BODY


def test_headers_are_sent_along(web: WebServer, target: Path, store: Store) -> None:
    web.add("/file", BODY)
    get(web, target, store, headers={"authorization": "Bearer secret"})
    assert web.log[0][2]["authorization"] == "Bearer secret"
    assert web.log[0][2]["accept-encoding"] == "identity"


def test_full_disk_is_told_before_it_is_full(
    web: WebServer, target: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.add("/file", BODY)
    usage = shutil.disk_usage("/")._replace(free=64_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ArtifactError, match=r"the download needs 100 kB"):
        get(web, target, store)


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full while downloading to .*file.bin.part"),
     (errno.EACCES, r"file.bin.part cannot be written: Permission denied")],
)  # fmt: skip
def test_disk_that_fails_midway_keeps_what_came(
    web: WebServer, target: Path, store: Store, number: int, message: str
) -> None:
    page = web.add("/file", BODY)

    def fail(progress: Progress) -> None:
        if progress.done > 0:
            raise OSError(number, {errno.ENOSPC: "full", errno.EACCES: "Permission denied"}[number])

    with pytest.raises(SourceError, match=message):
        download(f"{web.url}/file", target, sha256=SHA256, store=store, on_progress=fail)
    assert len(page.requests) == 1
    kept = part_of(target).read_bytes()
    assert BODY.startswith(kept)
    get(web, target, store)
    assert target.read_bytes() == BODY


_DOWNLOADER = """
import sys
from pathlib import Path
from thrifty.artifacts import Store
from thrifty.artifacts.sources.download import download
from thrifty.types import ignore_progress
url, target, store = sys.argv[1], Path(sys.argv[2]), Store(Path(sys.argv[3]))
download(url, target, sha256=None, store=store, on_progress=ignore_progress)
"""


def test_download_goes_on_after_its_process_was_killed(
    web: WebServer, target: Path, store: Store
) -> None:
    body = BODY * 40
    page: Page = web.add("/file", body, pause_after=3_000_000)
    victim = subprocess.Popen(
        [sys.executable, "-c", _DOWNLOADER, f"{web.url}/file", str(target), str(store.root)]
    )
    # Small files may still be in the process's buffer.
    wait_until(lambda: part_of(target).exists() and part_of(target).stat().st_size > 2_900_000)
    victim.kill()
    victim.wait()
    page.pause_after = None
    page.go_on.set()
    kept = part_of(target).stat().st_size
    assert 2_900_000 < kept <= 3_000_000
    assert part_of(target).read_bytes() == body[:kept]
    get(web, target, store, sha256=hashlib.sha256(body).hexdigest())
    assert target.read_bytes() == body
    assert page.requests == [None, f"bytes={kept}-"]
