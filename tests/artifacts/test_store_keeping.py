"""Stored models do not change; collection removes what is unused, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import write_model
from tests.artifacts.stored import SOURCE, artifacts, damage, put
from thrifty.artifacts import Store
from thrifty.artifacts import store as store_module
from thrifty.errors import ArtifactError, IntegrityError
from thrifty.types import Progress


def test_untouched_model_passes_both_checks(store: Store) -> None:
    _, artifact = put(store)
    seen: list[Progress] = []
    store.verify(artifact)
    store.verify(artifact, thorough=True, on_progress=seen.append)
    assert seen[-1].done == seen[-1].total == artifact.size_bytes


def test_changed_byte_is_found(store: Store) -> None:
    _, artifact = put(store)
    store.verify(artifact)
    damage(store.folder_of(artifact.id) / "model.safetensors", b"\xff")
    for thorough in (False, True):
        with pytest.raises(
            IntegrityError, match=r"model.safetensors is damaged.*thrifty models rm"
        ):
            store.verify(artifact, thorough=thorough)


def test_quick_check_trusts_an_unchanged_time_and_the_thorough_one_does_not(store: Store) -> None:
    _, artifact = put(store)
    store.verify(artifact)
    path = store.folder_of(artifact.id) / "model.safetensors"
    before = path.stat()
    damage(path, b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.verify(artifact)
    with pytest.raises(IntegrityError, match="is damaged"):
        store.verify(artifact, thorough=True)


def test_first_quick_check_reads_everything(store: Store) -> None:
    _, artifact = put(store)
    path = store.folder_of(artifact.id) / "model.safetensors"
    before = path.stat()
    damage(path, b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError, match="is damaged"):
        store.verify(artifact)


@pytest.mark.parametrize("change", ["longer", "shorter", "missing"])
def test_file_of_another_size_or_none_is_found(store: Store, change: str) -> None:
    _, artifact = put(store)
    store.verify(artifact)
    path = store.folder_of(artifact.id) / "config.json"
    path.chmod(0o644)
    if change == "longer":
        with path.open("ab") as file:
            file.write(b" ")
    elif change == "shorter":
        os.truncate(path, 3)
    else:
        path.unlink()
    what = "is missing" if change == "missing" else "is damaged"
    with pytest.raises(IntegrityError, match=rf"config.json {what}"):
        store.verify(artifact)


@pytest.mark.parametrize("fault", ["damaged", "missing", "note"])
def test_damaged_model_is_mended_by_fetching_it_again(store: Store, fault: str) -> None:
    version, artifact = put(store)
    folder = store.folder_of(artifact.id)
    if fault == "damaged":
        damage(folder / "model.safetensors", b"\xff\xff")
    elif fault == "missing":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "artifact.json").write_text("{")
    store.remove(version.label)
    _, again = put(store)
    assert again == artifact
    store.verify(store.load(again.id), thorough=True)


def test_model_that_shares_a_damaged_blob_is_mended_too(store: Store) -> None:
    _, one = put(store, "one", 1)
    damage(store.folder_of(one.id) / "config.json", b"!")
    _, two = put(store, "two", 2)
    store.verify(two, thorough=True)
    with pytest.raises(IntegrityError):
        store.verify(one)
    put(store, "one", 1)
    store.verify(one, thorough=True)


def test_damaged_note_and_damaged_name_are_named(store: Store) -> None:
    version, _ = put(store)
    note = store.folder_of(version.artifact) / "artifact.json"
    note.write_text("{}")
    with pytest.raises(IntegrityError, match=r"artifact.json is damaged.*fetch the model again"):
        store.find("tiny")
    (store.root / "names" / "tiny.json").write_text("[")
    with pytest.raises(IntegrityError, match=r"tiny.json is damaged"):
        store.find("tiny")


def test_check_works_where_nothing_can_be_noted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full or read-only disk, an intact model must still be servable."""
    _, artifact = put(store)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    store.verify(artifact)
    assert not list((store.root / "leases").glob("*.checked"))
    damage(store.folder_of(artifact.id) / "model.safetensors", b"\xff")
    with pytest.raises(IntegrityError, match="is damaged"):
        store.verify(artifact)


def test_many_threads_may_check_one_model_at_once(store: Store) -> None:
    _, artifact = put(store, size=200_000)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for path in (store.root / "leases").glob("*.checked"):
                path.unlink()
            list(pool.map(lambda _: store.verify(artifact), range(8)))
            assert len(list((store.root / "leases").glob("*.checked"))) == 1


# leases


def test_leased_model_is_neither_removed_nor_collected(store: Store) -> None:
    version, artifact = put(store)
    lease = store.lease(artifact.id)
    with pytest.raises(ArtifactError, match=r"'tiny@v1' is being served; stop it first"):
        store.remove("tiny@v1")
    os.unlink(store.root / "names" / "tiny.json")
    assert store.collect_garbage().kept_in_use == (artifact.id,)
    store.verify(artifact, thorough=True)
    os.close(lease)
    collected = store.collect_garbage()
    assert collected.artifacts == (artifact.id,)
    assert version.artifact not in artifacts(store)


def test_two_servers_may_lease_one_model(store: Store) -> None:
    _, artifact = put(store)
    one, two = store.lease(artifact.id), store.lease(artifact.id)
    os.close(one)
    with pytest.raises(ArtifactError, match="is being served"):
        store.remove("tiny@v1")
    os.close(two)
    store.remove("tiny@v1")


_HOLDER = """
import subprocess, sys, time
from pathlib import Path
from thrifty.artifacts import Store
lease = Store(Path(sys.argv[1])).lease(sys.argv[2])
child = subprocess.Popen(["sleep", "60"], pass_fds=[lease])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_lease_outlives_its_taker_as_long_as_a_child_holds_it(store: Store) -> None:
    _, artifact = put(store)
    taker = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(store.root), artifact.id],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert taker.stdout is not None
    child = int(taker.stdout.readline())
    try:
        taker.kill()
        taker.wait()
        taker.stdout.close()
        with pytest.raises(ArtifactError, match="is being served"):
            store.remove("tiny@v1")
        assert store.collect_garbage().artifacts == ()
    finally:
        os.kill(child, signal.SIGKILL)
    deadline_s = time.monotonic() + 20
    while True:
        try:
            store.remove("tiny@v1")
            break
        except ArtifactError:
            assert time.monotonic() < deadline_s, "the killed holder's lease did not end"
            time.sleep(0.02)
    assert store.collect_garbage().artifacts == (artifact.id,)


def test_lease_taken_while_the_model_is_collected_holds_the_next_one(store: Store) -> None:
    """The lease's file may be removed with the model; a new lease must not use the old file."""
    version, artifact = put(store)
    os.close(store.lease(artifact.id))
    store.remove(version.label)
    store.collect_garbage()
    again, _ = put(store)
    lease = store.lease(artifact.id)
    with pytest.raises(ArtifactError, match="is being served"):
        store.remove(again.label)
    os.close(lease)


# removing


def test_removed_version_leaves_the_others(store: Store) -> None:
    first, _ = put(store, filling=1)
    second, _ = put(store, filling=2)
    assert store.remove("tiny@v1") == first
    assert store.versions() == [second]
    with pytest.raises(ArtifactError, match="'tiny@v1' does not exist"):
        store.find("tiny@v1")
    with pytest.raises(ArtifactError, match="'tiny@v1' does not exist"):
        store.remove("tiny@v1")
    with pytest.raises(ArtifactError, match="name the version to remove, such as tiny@v1"):
        store.remove("tiny")
    assert store.remove("tiny@v2") == second
    assert not store.has_name("tiny")


def test_a_number_is_given_out_once(store: Store) -> None:
    for number in (1, 2):
        assert put(store, filling=number)[0].version == number
    path = store.root / "names" / "tiny.json"
    assert isinstance(json.loads(path.read_text()), list)  # as every release reads it
    store.remove("tiny@v2")
    assert put(store, filling=3)[0].label == "tiny@v3"
    store.remove("tiny@v1")
    store.remove("tiny@v3")
    assert not store.has_name("tiny")
    assert store.versions() == []
    with pytest.raises(ArtifactError, match="no model is named 'tiny'"):
        store.find("tiny")
    assert put(store, filling=3)[0].label == "tiny@v4"
    assert isinstance(json.loads(path.read_text()), list)


def test_collection_removes_exactly_what_nobody_needs(store: Store) -> None:
    _, named = put(store, "named", 1)
    leased_version, leased = put(store, "leased", 2)
    protected_version, protected = put(store, "protected", 3)
    gone_version, gone = put(store, "gone", 4)
    for version in (leased_version, protected_version, gone_version):
        store.remove(version.label)
    lease = store.lease(leased.id)
    collected = store.collect_garbage(frozenset({protected.id}))
    os.close(lease)
    assert collected.artifacts == (gone.id,)
    assert collected.kept_in_use == (leased.id,)
    weights = next(e for e in gone.files if e.path == "model.safetensors")
    assert collected.freed_bytes == weights.size  # config.json is shared with the others
    assert artifacts(store) == {named.id, leased.id, protected.id}
    for artifact in (named, leased, protected):
        store.verify(artifact, thorough=True)
    assert not list((store.root / "leases").glob(f"{gone.id}*"))


def test_second_name_keeps_an_artifact(store: Store) -> None:
    version, artifact = put(store, "one", 1)
    put(store, "two", 1)
    store.remove(version.label)
    assert store.collect_garbage().artifacts == ()
    assert store.find("two")[1] == artifact


def test_collection_of_an_empty_store_does_nothing(store: Store) -> None:
    assert store.collect_garbage() == store_module.GarbageCollection((), 0, ())


def test_leftovers_of_killed_processes_are_collected(store: Store) -> None:
    _, artifact = put(store)
    building = store.root / "artifacts" / ".0123-99"
    building.mkdir()
    (building / "half").write_text("x")
    orphan = store.root / "blobs" / ("0" * 64)
    orphan.write_bytes(b"x" * 1000)
    temporary = store.root / "names" / ".tiny.json-99"
    temporary.write_text("[")
    os.utime(temporary, (1, 1))
    collected = store.collect_garbage()
    assert collected.freed_bytes == 1000
    assert not building.exists()
    assert not orphan.exists()
    assert not temporary.exists()
    store.verify(artifact, thorough=True)


def make_partial(store: Store, key: str, age_s: float) -> Path:
    with store.stage(key) as folder:
        (folder / "package.whl.part").write_bytes(b"half")
    when = time.time() - age_s
    for path in (folder / "package.whl.part", folder):
        os.utime(path, (when, when))
    return folder


def test_stale_partial_downloads_go_and_fresh_ones_stay(store: Store) -> None:
    fresh = make_partial(store, "fresh", 3600)
    stale = make_partial(store, "stale", store_module.STALE_PARTIAL_S + 60)
    store.collect_garbage()
    assert (fresh / "package.whl.part").read_bytes() == b"half"
    assert not stale.exists()
    assert not stale.with_name(f"{stale.name}.lock").exists()


@pytest.mark.parametrize("content", ["nothing", "old"])
def test_stage_in_use_is_not_collected_however_old_it_looks(store: Store, content: str) -> None:
    with store.stage("key") as folder:
        if content == "old":
            (folder / "package.whl.part").write_bytes(b"half")
            for path in (folder / "package.whl.part", folder):
                os.utime(path, (1, 1))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(store.collect_garbage).result(30)
        assert folder.is_dir()
        version, _ = store.add(write_model(folder / "model"), "tiny", SOURCE)
    assert store.find("tiny")[0] == version


def test_empty_stages_do_not_pile_up(store: Store) -> None:
    for filling in range(5):
        put(store, filling=filling)
    store.collect_garbage()
    assert list((store.root / "partial").iterdir()) == []
