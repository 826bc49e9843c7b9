"""What every remote does: one commit rule, nothing twice, nothing unchecked."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.artifacts.adapters import make_lora, put_adapter
from tests.artifacts.models import Llama
from tests.artifacts.remotes.places import Place, open_place
from tests.artifacts.stored import blobs, put
from thrifty.artifacts import Lineage, Parent, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.remotes import look_up_remote, pull, push
from thrifty.artifacts.sources import fetch_model, look_up_model
from thrifty.errors import IntegrityError, RemoteError
from thrifty.types import Progress


def test_what_is_pushed_can_be_pulled(store: Store, other: Store, place: Place) -> None:
    _, artifact = put(store)
    pushed = push(store, "tiny", place.url)
    assert (pushed.created, pushed.moved_bytes) == (True, artifact.size_bytes)
    for number, reference in enumerate((pushed.reference, place.reference("tiny", 1)), 1):
        pulled = pull(other, reference, name=f"model-{number}")
        assert pulled.version.label == f"model-{number}@v1"
        assert pulled.artifact == artifact
        assert pulled.version.lineage.source == pushed.reference
        other.verify(pulled.artifact, thorough=True)
    assert not list((other.root / "partial").glob("*/parts/*"))


def test_only_missing_blobs_are_moved(store: Store, other: Store, place: Place) -> None:
    put(store, filling=1)
    push(store, "tiny", place.url)
    again = push(store, "tiny", place.url)
    assert (again.created, again.moved_bytes) == (False, 0)
    if place.url.startswith("oci"):
        return  # one repository, one model: the rest has one more
    _, second = put(store, filling=2)
    shared = {one.sha256 for one in second.files} & {
        one.sha256 for one in store.find("tiny@v1")[1].files
    }
    assert shared, "the models should have a file in common"
    pushed = push(store, "tiny@v2", place.url)
    assert 0 < pushed.moved_bytes < second.size_bytes
    pull(other, place.reference("tiny", 1))
    pulled = pull(other, place.reference("tiny"))
    assert pulled.artifact == second
    assert 0 < pulled.moved_bytes < second.size_bytes
    assert pull(other, place.reference("tiny")).version == pulled.version


def test_a_version_never_changes(store: Store, other: Store, place: Place) -> None:
    put(store, filling=1)
    put(other, filling=2)
    first = push(store, "tiny", place.url)
    with pytest.raises(RemoteError, match=r"is another model .* --as NAME"):
        push(other, "tiny", place.url)
    assert pull(other, place.reference("tiny", 1)).artifact.id == first.artifact
    if not place.url.startswith("oci") or ":" not in place.url.removeprefix("oci://127.0.0.1:"):
        renamed = push(other, "tiny@v1", place.url, rename="tiny")
        assert renamed.created
        assert push(other, "tiny@v1", place.url, rename="tiny").reference == renamed.reference
        assert open_place(place).list_numbers("tiny") == [1, 2]


def test_two_writers_of_one_version(store: Store, other: Store, place: Place) -> None:
    """One of them wins, whole, and the other is told."""
    if not place.atomic:
        pytest.skip("a registry cannot write a tag only if it is absent: docs/remotes.md")
    put(store, filling=1)
    put(other, filling=2)

    def try_push(one: Store) -> str:
        try:
            return push(one, "tiny@v1", place.url).artifact
        except RemoteError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(try_push, (store, other)))
    (winner,) = (one for one in results if len(one) == 24)
    (loser,) = (one for one in results if one != winner)
    assert "is another model" in loser
    third = Store(store.root.parent / "third")
    assert pull(third, place.reference("tiny", 1)).artifact.id == winner


def test_two_writers_of_one_name(store: Store, other: Store, place: Place) -> None:
    """Each gets a number of its own."""
    if not place.atomic:
        pytest.skip("a registry cannot write a tag only if it is absent: docs/remotes.md")
    put(store, filling=1)
    put(other, filling=2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: push(one, "tiny@v1", place.url, rename="shared"), (store, other)))
    assert open_place(place).list_numbers("shared") == [1, 2]


@pytest.mark.parametrize("damage", ["other bytes", "a part", "more"])
def test_a_lying_store(store: Store, other: Store, place: Place, damage: str) -> None:
    """What does not match its digest never enters the store, and the error says which it is."""
    # A registry shares blobs between repositories, so each test damages one of its own.
    _, artifact = put(store, filling=10 + len(damage))
    pushed = push(store, "tiny", place.url)
    entry = max(artifact.files, key=lambda one: one.size)
    content = (store.folder_of(artifact.id) / entry.path).read_bytes()
    changed = {"other bytes": content[:-1] + b"?", "a part": content[:-9], "more": content + b"?"}
    place.damage(entry.sha256, changed[damage])
    with pytest.raises(IntegrityError, match=f"sha256:{entry.sha256} .*is not what its name says"):
        pull(other, pushed.reference)
    assert not other.has_name("tiny")
    assert not (other.root / "blobs").exists() or not blobs(other)
    if place.url.startswith("oci"):
        return  # a registry keeps what it has under a digest, and nothing can replace it
    again = push(store, "tiny", place.url, verify=True)
    assert (again.created, again.moved_bytes) == (False, entry.size)
    assert pull(other, pushed.reference).artifact == artifact


def test_a_missing_blob(store: Store, other: Store, place: Place) -> None:
    version, artifact = put(store)
    remote = open_place(place)
    from thrifty.artifacts.remotes.manifest import encode_manifest, make_manifest

    manifest = make_manifest(version, artifact, ())
    if place.url.startswith("oci"):
        with pytest.raises(RemoteError, match=r"BLOB_UNKNOWN|MANIFEST_BLOB_UNKNOWN"):
            remote.create_entry(remote.entry_of("tiny", 1), encode_manifest(manifest))
        return
    assert remote.create_entry(remote.entry_of("tiny", 1), encode_manifest(manifest))
    with pytest.raises(RemoteError, match="does not have the blob"):
        pull(other, place.reference("tiny"))
    push(store, "tiny", place.url)
    assert pull(other, place.reference("tiny")).artifact == artifact


def test_a_push_that_was_broken_off_is_resumed(store: Store, other: Store, place: Place) -> None:
    """Before the manifest is written there is no model; what was sent whole is not sent again."""
    _, artifact = put(store, size=5000)

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == "upload" and progress.done > progress.total / 2:
            raise StopError

    with pytest.raises(StopError):
        push(store, "tiny", place.url, on_progress=stop)
    with pytest.raises(RemoteError):
        pull(other, place.reference("tiny", 1))
    pushed = push(store, "tiny", place.url)
    assert pushed.created
    assert pushed.moved_bytes < artifact.size_bytes
    assert pull(other, place.reference("tiny", 1)).artifact == artifact


def test_a_pull_that_was_broken_off_is_resumed(store: Store, other: Store, place: Place) -> None:
    _, artifact = put(store, size=900_000)
    push(store, "tiny", place.url)

    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == "download" and progress.done > progress.total / 2:
            raise StopError

    with pytest.raises(StopError):
        pull(other, place.reference("tiny", 1), on_progress=stop)
    assert not other.has_name("tiny")
    pulled = pull(other, place.reference("tiny", 1))
    assert pulled.artifact == artifact
    assert pulled.moved_bytes < artifact.size_bytes / 2, "it should go on where it ended"


def test_what_a_model_was_made_from_and_its_figures_travel(
    store: Store, other: Store, place: Place
) -> None:
    recipe = {"step": "test", "version": 1}
    lineage = Lineage(parents=(Parent("0" * 24, "big@v1"),), recipe=recipe, figures={"a": 1})
    _, artifact = put(store, lineage=lineage)
    store.record_measurement(artifact.id, "quality", {"text": "x"}, {"loss": 1.5})
    other_figure = {"loss": 2.5}
    put(other, name="same")
    other.record_measurement(artifact.id, "quality", {"text": "y"}, other_figure)
    push(store, "tiny", place.url)
    pulled = pull(other, place.reference("tiny", 1))
    made = other.find_made("0" * 24, recipe)
    assert made is not None
    assert made[0] == pulled.version
    assert [one.values for one in other.read_measurements(artifact.id)] == [
        other_figure,
        {"loss": 1.5},
    ]
    before = other.read_measurements(artifact.id)
    pull(other, place.reference("tiny", 1))
    assert other.read_measurements(artifact.id) == before


def test_a_url_is_a_model_wherever_models_are_named(
    store: Store, other: Store, place: Place
) -> None:
    _, artifact = put(store, filling=20)
    push(store, "tiny", place.url)
    source = place.reference("tiny", 1)
    found = look_up_model(other, source)
    assert (found.label, found.size_bytes, found.stored) == ("tiny@v1", artifact.size_bytes, None)
    version, fetched = fetch_model(other, source)
    assert fetched == artifact
    # Offline from here on.
    place.damage(max(artifact.files, key=lambda one: one.size).sha256, b"")
    assert fetch_model(other, source) == (version, fetched)
    assert look_up_model(other, source).stored == (version, fetched)


def test_the_url_of_a_remote_with_one_model_needs_no_name(
    store: Store, other: Store, place: Place
) -> None:
    _, artifact = put(store)
    push(store, "tiny", place.url)
    assert look_up_remote(other, place.url).manifest.artifact == artifact
    if place.url.startswith("oci"):
        return
    with pytest.raises(RemoteError, match=r"has no model 'tin'; there are: \S+/tiny$"):
        pull(other, place.reference("tin"))
    with pytest.raises(RemoteError, match=r"@v7 does not exist; versions there: v1$"):
        pull(other, place.reference("tiny", 7))
    push(store, "tiny", place.url, rename="second")
    with pytest.raises(RemoteError, match=r"there are: \S+/second, \S+/tiny$"):
        pull(other, place.url)


def test_an_empty_remote(other: Store, place: Place) -> None:
    with pytest.raises(RemoteError, match=r"no model is there|has no version"):
        pull(other, place.reference("tiny"))


def test_a_large_blob(store: Store, other: Store, place: Place, tmp_path: Path) -> None:
    """One that goes in several parts."""
    if place.url.startswith("file"):
        pytest.skip("a folder has no parts")
    content = bytes(range(256)) * (35_000_000 // 256) + b"end"
    digest = hashlib.sha256(content).hexdigest()
    path = tmp_path / "large"
    path.write_bytes(content)
    sent: list[int] = []
    remote = open_place(place)
    remote.put_blob(digest, path, sent.append)
    assert sum(sent) == len(content) == remote.find_blob(digest)
    assert b"".join(remote.read_blob(digest, 20_000_000)) == content[20_000_000:]


def test_manifests_hold_no_paths_of_this_machine(
    store: Store, other: Store, place: Place, tmp_path: Path
) -> None:
    put(store, lineage=Lineage(requested=f"file:{tmp_path}#1", source=f"file:{tmp_path}"))
    push(store, "tiny", place.url)
    manifest = look_up_remote(other, place.reference("tiny", 1)).manifest
    assert str(tmp_path) not in msgspec.json.encode(manifest.version).decode()


def test_an_adapter_takes_its_base_along(store: Store, other: Store, place: Place) -> None:
    with store.stage("llama") as stage:
        base = store.add(Llama().write_safetensors(stage / "model"), "llama", Lineage())
    _, adapter = put_adapter(store, base, make_lora(store, base[1]))
    pushed = push(store, "tuned", place.url)
    assert pushed.moved_bytes == adapter.size_bytes + base[1].size_bytes
    assert push(store, "tuned", place.url).moved_bytes == 0
    pulled = pull(other, pushed.reference)
    assert pulled.artifact == adapter
    assert other.find("llama@v1")[1] == base[1]
    other.verify(pulled.artifact, thorough=True)
    name = "model.layers.0.mlp.up_proj.weight"
    found = [load_decoder(one.folder_of(adapter.id)).tensors for one in (store, other)]
    np.testing.assert_array_equal(found[0].read_tensor(name), found[1].read_tensor(name))
