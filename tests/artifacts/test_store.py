"""The store finds what was added, and adds only complete models."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.artifacts.models import write_model
from tests.artifacts.stored import SOURCE, blobs, put
from thrifty.artifacts import Lineage, Parent, Store
from thrifty.errors import ArtifactError, FormatRefused
from thrifty.types import Family, Format, Progress


def test_added_model_is_found_by_name_and_by_version(store: Store) -> None:
    version, artifact = put(store)
    assert version.label == "tiny@v1"
    assert store.find("tiny") == store.find("tiny@v1") == (version, artifact)
    assert store.load(version.artifact) == artifact
    assert store.versions() == [version]
    assert store.has_name("tiny")
    assert not store.has_name("other")
    assert artifact.description.format is Format.SAFETENSORS
    assert artifact.description.family is Family.DECODER
    assert artifact.description.architecture == "LlamaForCausalLM"
    assert artifact.description.parameters == 64
    folder = store.folder_of(artifact.id)
    assert sorted(e.path for e in artifact.files) == ["config.json", "model.safetensors"]
    assert artifact.size_bytes == sum((folder / e.path).stat().st_size for e in artifact.files)


def test_adding_empties_the_stage(store: Store) -> None:
    with store.stage("key") as folder:
        store.add(write_model(folder / "model"), "tiny", SOURCE)
        assert not (folder / "model").exists()


def test_stored_files_cannot_be_written_to(store: Store) -> None:
    _, artifact = put(store)
    for entry in artifact.files:
        mode = (store.folder_of(artifact.id) / entry.path).stat().st_mode
        assert stat.S_IMODE(mode) == 0o444


def test_same_bytes_with_the_same_lineage_are_the_same_version(store: Store) -> None:
    first = put(store)
    assert put(store) == first
    assert store.versions() == [first[0]]


def test_same_bytes_from_elsewhere_are_a_new_version_of_the_same_artifact(store: Store) -> None:
    first, _ = put(store)
    second, _ = put(store, lineage=Lineage(requested="hf:a/b", source="hf:a/b@1"))
    assert second.label == "tiny@v2"
    assert second.artifact == first.artifact
    assert store.find("tiny")[0] == second
    assert store.find("tiny@v1")[0] == first


def test_other_bytes_are_the_next_version(store: Store) -> None:
    first, _ = put(store, filling=1)
    second, _ = put(store, filling=2)
    assert [v.label for v in store.versions()] == ["tiny@v1", "tiny@v2"]
    assert first.artifact != second.artifact
    assert store.find("tiny")[0] == second


def test_equal_files_of_two_models_are_kept_once(store: Store) -> None:
    _, one = put(store, "one", 1)
    _, two = put(store, "two", 2)
    assert len(blobs(store)) == 3
    shared = [store.folder_of(a.id) / "config.json" for a in (one, two)]
    assert shared[0].stat().st_ino == shared[1].stat().st_ino


def test_lineage_comes_back_as_it_was_given(store: Store) -> None:
    lineage = Lineage(
        parents=(Parent("abc", "big@v2"),), recipe={"step": "openvino", "quantize": "int8"},
        figures={"kld": 0.01},
    )  # fmt: skip
    version, _ = put(store, lineage=lineage)
    found = store.find("tiny")[0].lineage
    assert found == version.lineage
    assert (found.parents, found.recipe, found.figures) == (
        lineage.parents, lineage.recipe, lineage.figures,
    )  # fmt: skip
    assert found.made_by.startswith("thrifty ")


def test_what_was_requested_and_what_was_made_is_found_again(store: Store) -> None:
    assert store.find_requested("pypi:tiny") is None
    old, _ = put(store, filling=1)
    new, artifact = put(store, filling=2, lineage=Lineage(requested="pypi:tiny", source="==2"))
    assert store.find_requested("pypi:tiny") == (new, artifact)
    assert store.find_requested("pypi:other") is None
    recipe = {"step": "openvino", "quantize": "int8"}
    made = Lineage(parents=(Parent(old.artifact, old.label),), recipe=recipe)
    made_version, _ = put(store, "tiny-int8", 3, made)
    found = store.find_made(old.artifact, recipe)
    assert found is not None
    assert found[0] == made_version
    assert store.find_made(old.artifact, {**recipe, "quantize": "int4"}) is None
    assert store.find_made(new.artifact, recipe) is None


def test_requested_model_whose_files_are_gone_counts_as_not_stored(store: Store) -> None:
    version, _ = put(store)
    (store.folder_of(version.artifact) / "artifact.json").unlink()
    assert store.find_requested("pypi:tiny") is None


def test_unknown_names_are_told_with_what_there_is(store: Store) -> None:
    with pytest.raises(ArtifactError, match=r"no model is named 'a'; nothing is stored yet"):
        store.find("a")
    put(store, "beta", 1)
    put(store, "alpha", 2)
    with pytest.raises(ArtifactError, match=r"stored are: alpha, beta. To fetch one: thrifty pull"):
        store.find("a")
    with pytest.raises(
        ArtifactError, match=r"'beta@v2' does not exist; existing versions: beta@v1"
    ):
        store.find("beta@v2")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", "is not a model's name"),
        ("../up", "is not a model's name"),
        ("a/b", "is not a model's name"),
        (".hidden", "is not a model's name"),
        ("x" * 97, "is not a model's name"),
        ("tiny@", "write tiny@v1"),
        ("tiny@1", "write tiny@v1"),
        ("tiny@v0", "write tiny@v1"),
        ("tiny@v1 ", "write tiny@v1"),
    ],
)
def test_labels_that_are_none_are_refused(store: Store, label: str, message: str) -> None:
    put(store)
    with pytest.raises(ArtifactError, match=message):
        store.find(label)


def test_refused_model_is_left_where_it_was(store: Store) -> None:
    with store.stage("key") as folder:
        (folder / "model").mkdir()
        (folder / "model" / "notes.txt").write_text("no weights")
        with pytest.raises(FormatRefused, match="contains no model"):
            store.add(folder / "model", "tiny", SOURCE)
        assert (folder / "model" / "notes.txt").read_text() == "no weights"
        with pytest.raises(ArtifactError, match="is not a model's name"):
            store.add(write_model(folder / "model"), "not a name", SOURCE)
        assert (folder / "model" / "model.safetensors").exists()
    assert store.versions() == []


def test_progress_of_adding_ends_at_the_whole(store: Store, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with store.stage("key") as folder:
        _, artifact = store.add(
            write_model(folder / "model"), "tiny", SOURCE, on_progress=seen.append
        )
    assert seen[-1] == Progress("store", artifact.size_bytes, artifact.size_bytes)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
