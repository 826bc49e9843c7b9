"""Manifests of remotes are untrusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.artifacts.remotes.places import FolderPlace
from tests.artifacts.stored import put
from thrifty.artifacts import Store
from thrifty.artifacts.artifact import FileEntry, compute_id
from thrifty.artifacts.remotes import pull, push
from thrifty.errors import ArtifactError, IntegrityError


def put_id(manifest: dict[str, Any]) -> None:
    """Give a changed manifest the id that fits it."""
    files = tuple(FileEntry(**entry) for entry in manifest["artifact"]["files"])
    manifest["artifact"]["id"] = manifest["version"]["artifact"] = compute_id(files)


def change_path(path: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["artifact"]["files"][0]["path"] = path
        put_id(manifest)

    return change


def change_file(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["artifact"]["files"][0].update(values)
        put_id(manifest)

    return change


def double(manifest: dict[str, Any]) -> None:
    manifest["artifact"]["files"] *= 2
    put_id(manifest)


def empty(manifest: dict[str, Any]) -> None:
    manifest["artifact"]["files"] = []
    put_id(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_path("../out"), "has a file with the path"),
        (change_path("/out"), "has a file with the path"),
        (change_path("a/../../out"), "has a file with the path"),
        (change_path("a\\..\\out"), "has a file with the path"),
        (change_path("artifact.json"), "has a file with the path"),
        (change_path("a\0b"), "has a file with the path"),
        (change_path("a//b"), "has a file with the path"),
        (change_path("config.json/x"), "is below another file"),
        (change_file(sha256="../../../etc/passwd"), "no valid checksum"),
        (change_file(size=-1), "no valid checksum or size"),
        (change_file(size=2**60), "no valid checksum or size"),
        (double, "lists no files, too many, or one twice"),
        (empty, "lists no files, too many, or one twice"),
        (lambda m: m["artifact"].update(id="0" * 24), "its id does not match"),
        (lambda m: m["version"].update(artifact="0" * 24), "names another model"),
        (lambda m: m["version"].update(version=0), "names another model"),
        (lambda m: m["version"].update(name="../x"), "is not a model's name"),
        (
            lambda m: m["artifact"]["description"].update(base={"id": "../../x", "name": "x"}),
            "its base has the id",
        ),
        (lambda m: m.update(schema=2), "has the schema 2"),
        (lambda m: m.pop("artifact"), "is not a model's manifest"),
    ],
)
def test_what_a_manifest_may_not_say(
    store: Store, other: Store, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    put(store)
    place = FolderPlace(store.root.parent / "remote")
    push(store, "tiny", place.url)
    path = place.root / "models/tiny/v1.json"
    manifest = json.loads(path.read_bytes())
    manifest["artifact"]["files"].sort(key=lambda one: one["path"] == "config.json")
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match=message):
        pull(other, place.reference("tiny"))
    assert not other.versions()
    assert not (store.root.parent / "out").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest(store: Store, other: Store, content: bytes) -> None:
    put(store)
    place = FolderPlace(store.root.parent / "remote")
    push(store, "tiny", place.url)
    (place.root / "models/tiny/v1.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a model's manifest"):
        pull(other, place.reference("tiny"))


def test_an_enormous_manifest_is_not_read(store: Store, other: Store) -> None:
    put(store)
    place = FolderPlace(store.root.parent / "remote")
    push(store, "tiny", place.url)
    with (place.root / "models/tiny/v1.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ArtifactError, match="which is no manifest"):
        pull(other, place.reference("tiny"))
