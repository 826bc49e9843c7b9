"""Several processes on one store, killed processes, and failing disks."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import write_model
from tests.artifacts.stored import SOURCE, artifacts, blobs, put
from thrifty.artifacts import Lineage, Store
from thrifty.errors import ArtifactError


def test_stage_of_one_key_has_one_holder(store: Store) -> None:
    inside, most = 0, 0
    mutex = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with store.stage("key") as folder:
            with mutex:
                inside += 1
                most = max(most, inside)
            assert folder.is_dir()
            time.sleep(0.002)
            with mutex:
                inside -= 1

    collecting = threading.Event()

    def collect() -> None:
        while not collecting.is_set():
            store.collect_garbage()

    collector = threading.Thread(target=collect)
    collector.start()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(60)))
    collecting.set()
    collector.join()
    assert most == 1


def test_stages_of_two_keys_do_not_wait_for_each_other(store: Store) -> None:
    with store.stage("one") as one, store.stage("two") as two:
        assert one != two


def test_stage_keeps_what_a_failed_try_left(store: Store) -> None:
    def fail() -> None:
        with store.stage("key") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.stage("key") as folder:
        assert (folder / "half").read_text() == "x"


_ADDER = """
import sys
from pathlib import Path
from tests.artifacts.models import write_model
from thrifty.artifacts import Lineage, Store
store, me = Store(Path(sys.argv[1])), int(sys.argv[2])
sys.stdin.readline()
for i in range(8):
    for filling in (i, 100 + 10 * me + i):
        with store.stage(f"{filling} {me if filling < 100 else 0}") as folder:
            store.add(write_model(folder / "model", filling), "tiny", Lineage(requested=str(filling)))
"""


def test_several_processes_may_add_at_once(store: Store) -> None:
    root = Path(__file__).parents[2]
    adders = [
        subprocess.Popen(
            [sys.executable, "-c", _ADDER, str(store.root), str(me)],
            cwd=root, stdin=subprocess.PIPE, text=True,
        )
        for me in range(3)
    ]  # fmt: skip
    for adder in adders:
        assert adder.stdin is not None
        adder.stdin.write("go\n")
        adder.stdin.flush()
    for adder in adders:
        assert adder.stdin is not None
        adder.stdin.close()
        assert adder.wait(60) == 0
    versions = store.versions()
    # 8 models that all three added, and 8 that each added alone.
    assert [v.version for v in versions] == list(range(1, 8 + 24 + 1))
    assert len({v.artifact for v in versions}) == 32
    for version in versions:
        store.verify(store.load(version.artifact), thorough=True)


def test_collecting_while_others_add_takes_nothing_from_them(store: Store) -> None:
    """An existing blob may lose its last model before the new one links to it."""
    stopping = threading.Event()
    rounds: list[int] = []

    def collect() -> None:
        while not stopping.is_set():
            rounds.append(len(store.collect_garbage().artifacts))

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for round_number in range(60):
            version, artifact = put(store, filling=round_number % 2)
            store.verify(artifact, thorough=True)
            store.remove(version.label)
    finally:
        stopping.set()
        collector.join()
    assert len(rounds) > 10
    assert sum(rounds) > 10, "the collector had nothing to collect"
    store.collect_garbage()
    assert (artifacts(store), blobs(store)) == (set(), set())


_VICTIM = """
import sys
from pathlib import Path
from tests.artifacts.models import write_model
from thrifty.artifacts import Lineage, Store
store = Store(Path(sys.argv[1]))
store.stage("warm").__enter__()
print("ready", flush=True)
for i in range(int(sys.argv[2]), 1_000_000):
    with store.stage(str(i)) as folder:
        model = write_model(folder / "model", i % 256, 20_000 + i // 256)
        store.add(model, "tiny", Lineage(requested=str(i)))
"""


@pytest.mark.slow
def test_killed_add_leaves_nothing_half_visible_and_the_next_try_works(store: Store) -> None:
    generator = random.Random(7)
    root = Path(__file__).parents[2]
    added = 0
    for _ in range(25):
        victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(store.root), str(added)],
            cwd=root, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0, 0.04))
        victim.kill()
        victim.wait()
        victim.stdout.close()
        versions = store.versions()
        assert [v.version for v in versions] == list(range(1, len(versions) + 1))
        for version in versions[-3:]:
            store.verify(store.load(version.artifact), thorough=True)
        for name in artifacts(store):
            if not name.startswith("."):
                store.verify(store.load(name), thorough=True)
        # The addition that was interrupted by the kill.
        added = len(versions)
        with store.stage(str(added)) as folder:
            shutil.rmtree(folder / "model", ignore_errors=True)
            model = write_model(folder / "model", added % 256, 20_000 + added // 256)
            version, artifact = store.add(model, "tiny", Lineage(requested=str(added)))
        assert version.version == added + 1
        store.verify(artifact, thorough=True)
        added += 1
        if generator.random() < 0.3:
            store.collect_garbage()
    assert added > 25
    store.collect_garbage()
    for version in store.versions():
        store.verify(store.load(version.artifact), thorough=True)
    kept = {entry.sha256 for v in store.versions() for entry in store.load(v.artifact).files}
    assert blobs(store) == kept


# full and failing disks


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EPERM, "hard")]
)
def test_disk_that_refuses_links_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, fails_at: int, number: int, said: str
) -> None:
    link, calls = os.link, 0

    def limited(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise OSError(number, os.strerror(number))
        link(*arguments, **options)

    with store.stage("key") as folder:
        model = write_model(folder / "model")
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", limited)
            with pytest.raises(ArtifactError, match=said):
                store.add(model, "tiny", SOURCE)
        assert store.versions() == []
        assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors"]
        _, artifact = store.add(model, "tiny", SOURCE)
    store.verify(artifact, thorough=True)


def test_disk_that_fills_while_a_name_is_written_keeps_the_old_versions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = put(store, filling=1)
    replace = os.replace

    def limited(source: Any, target: Any) -> None:
        if Path(target).parent.name == "names":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", limited)
        with pytest.raises(ArtifactError, match=r"the disk is full.*thrifty models gc"):
            put(store, filling=2)
    assert store.versions() == [first]
    second, _ = put(store, filling=2)
    assert second.label == "tiny@v2"


def fail_writes(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_version_can_be_removed_on_a_full_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = put(store, filling=1)
    _, gone = put(store, filling=2)
    put(store, "other", filling=3)
    with monkeypatch.context() as patch:
        patch.setattr("thrifty.artifacts.names.write_atomically", fail_writes(errno.ENOSPC))
        store.remove("tiny@v2")
        store.remove("other@v1")
        assert store.versions() == [kept]
        assert gone.id in store.collect_garbage().artifacts
    assert put(store, filling=4)[0].label == "tiny@v3"
    assert put(store, "other", filling=5)[0].label == "other@v2"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_can_only_be_read_is_told_of(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    version, artifact = put(store)
    monkeypatch.setattr("thrifty.artifacts.store.lock_file", fail_writes(number))
    for change in (
        lambda: store.remove(version.label),
        store.collect_garbage,
        lambda: store.record_measurement(artifact.id, "speed", {}, {}),
    ):
        with pytest.raises(ArtifactError, match=r"could .*; set THRIFTY_HOME to a folder you can"):
            change()
    assert store.versions() == [version]


def test_too_little_room_is_told_before_anything_is_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    store.require_space(1_000_000, "the download")
    with pytest.raises(
        ArtifactError,
        match=r"the download needs 90 MB, and .*models has 100 MB free; free some space "
        r"\(thrifty models gc\) or set THRIFTY_HOME",
    ):
        store.require_space(90_000_000, "the download")


def test_store_below_a_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Exception, match=r"cannot make the folder .*set THRIFTY_HOME"),
        Store(tmp_path / "file" / "models").stage("key"),
    ):
        pass
