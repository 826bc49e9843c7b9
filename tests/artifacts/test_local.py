"""Models from this machine: folders, files, and paths that contain no model."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.artifacts.models import Llama, write_model
from tests.artifacts.stored import blobs
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.errors import ArtifactError, FormatRefused, IntegrityError, SourceError
from thrifty.types import Format, Progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "My Model")


def files_of(store: Store, label: str) -> list[str]:
    return sorted(entry.path for entry in store.find(label)[1].files)


def test_folder_is_copied_and_named_after_itself(store: Store, folder: Path) -> None:
    seen: list[Progress] = []
    version, artifact = fetch_model(store, str(folder), on_progress=seen.append)
    assert version.label == "my-model@v1"
    assert version.lineage.source == f"file:{folder}"
    assert files_of(store, "my-model") == ["config.json", "model.safetensors"]
    stored = store.folder_of(artifact.id) / "model.safetensors"
    assert stored.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not stored.samefile(folder / "model.safetensors")
    assert {p.step for p in seen} == {"copy", "store"}


def test_gguf_is_copied_alone_and_named_after_itself(store: Store, tmp_path: Path) -> None:
    path = Llama().write_gguf(tmp_path / "tiny.Q8.gguf")
    (tmp_path / "other.txt").write_text("no part of it")
    version, artifact = fetch_model(store, str(path))
    assert version.label == "tiny.q8@v1"
    assert files_of(store, "tiny.q8") == ["tiny.Q8.gguf"]
    assert artifact.description.format is Format.GGUF


def test_relative_and_home_paths_are_found(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    first, _ = fetch_model(store, "./My Model")
    assert fetch_model(store, "My Model")[0] == first
    monkeypatch.setenv("HOME", str(folder.parent))
    assert fetch_model(store, "~/My Model")[0] == first


def test_unchanged_folder_is_not_copied_again(store: Store, folder: Path) -> None:
    first = fetch_model(store, str(folder))
    seen: list[Progress] = []
    assert fetch_model(store, str(folder), on_progress=seen.append) == first
    assert seen == []


def test_changed_folder_is_a_new_version(store: Store, folder: Path) -> None:
    first, _ = fetch_model(store, str(folder))
    write_model(folder, filling=9)
    second, _ = fetch_model(store, str(folder))
    assert (first.label, second.label) == ("my-model@v1", "my-model@v2")
    assert first.artifact != second.artifact
    (folder / "generation_config.json").write_text("{}")
    third, _ = fetch_model(store, str(folder))
    assert third.artifact != second.artifact


def test_changed_gguf_is_a_new_version(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    Llama(seed=1).write_gguf(path)
    first, _ = fetch_model(store, str(path))
    Llama(seed=2).write_gguf(path)
    second, _ = fetch_model(store, str(path))
    assert first.artifact != second.artifact
    assert second.version == 2


def test_time_alone_makes_it_look_again_and_find_the_same_bytes(store: Store, folder: Path) -> None:
    first, _ = fetch_model(store, str(folder))
    os.utime(folder / "config.json", (1, 1))
    again, _ = fetch_model(store, str(folder))
    assert again.artifact == first.artifact
    assert len(blobs(store)) == 2


def test_only_what_belongs_to_a_model_is_copied(store: Store, folder: Path) -> None:
    for name in ("weights.pt", "pytorch_model.bin", "train.py", ".secret.json", "notes.docx"):
        (folder / name).write_bytes(b"x")
    for name in (".git", ".cache"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "README.md").write_text("hello")
    fetch_model(store, str(folder))
    assert files_of(store, "my-model") == [
        "1_Pooling/config.json", "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_openvino_weights_are_copied_though_they_end_in_bin(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "ir"
    folder.mkdir()
    for name in ("openvino_model.xml", "openvino_model.bin", "pytorch_model.bin"):
        (folder / name).write_text("x")
    _, artifact = fetch_model(store, str(folder))
    assert artifact.description.format is Format.OPENVINO
    assert files_of(store, "ir") == ["openvino_model.bin", "openvino_model.xml"]


def test_links_to_files_are_followed(store: Store, folder: Path, tmp_path: Path) -> None:
    """As in the cache of huggingface_hub, where a snapshot consists of links."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    (snapshot / "gone.json").symlink_to(tmp_path / "nowhere")
    _, artifact = fetch_model(store, str(snapshot))
    assert files_of(store, "snapshot") == ["config.json", "model.safetensors"]
    store.verify(artifact, thorough=True)


def test_read_only_folders_are_read(store: Store, folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        version, _ = fetch_model(store, str(folder))
        assert store.find("my-model")[0] == version
    finally:
        folder.chmod(0o755)


def test_file_names_that_are_not_text_do_no_harm(store: Store, folder: Path) -> None:
    name = os.fsdecode(b"\xff.bin")
    (folder / name).write_bytes(b"x")
    assert fetch_model(store, str(folder))[0].label == "my-model@v1"


# refusals


def test_what_does_not_exist_is_told(store: Store, tmp_path: Path) -> None:
    for name in (f"{tmp_path}/nothing", "./nothing", "nothing.gguf"):
        with pytest.raises(SourceError, match=r"nothing.* does not exist"):
            fetch_model(store, name)
    with pytest.raises(ArtifactError, match="no model is named 'nothing'"):
        fetch_model(store, "nothing")


@pytest.mark.parametrize("source", ["ftp:thing", "ollama:llama3", "hub:a/b"])
def test_unknown_kinds_of_sources_are_told_with_the_known_ones(store: Store, source: str) -> None:
    with pytest.raises(
        SourceError, match=r"has the unknown source kind '\w+'; write pypi:PACKAGE, hf:ORG/NAME"
    ):
        fetch_model(store, source)


def test_stored_models_are_found_by_their_names(store: Store, folder: Path) -> None:
    stored = fetch_model(store, str(folder))
    assert fetch_model(store, "my-model") == stored
    assert fetch_model(store, "my-model@v1") == stored


def test_folder_of_pickles_is_refused_by_its_own_name(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        FormatRefused, match=rf"{folder} contains weights only as pickle \(pytorch_model.bin\)"
    ):
        fetch_model(store, str(folder))
    assert not store.root.joinpath("blobs").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.pkl", "model.ckpt"])
def test_pickle_file_is_refused_with_the_reason(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(
        FormatRefused, match=rf"{name} is a pickle file, which can run code when it is read"
    ):
        fetch_model(store, f"{tmp_path}/{name}")


def test_file_of_another_kind_is_refused(store: Store, folder: Path) -> None:
    with pytest.raises(FormatRefused, match=r"is not a .gguf file; name the model's folder"):
        fetch_model(store, str(folder / "model.safetensors"))


def test_several_ggufs_are_refused_by_their_own_folder(store: Store, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        Llama().write_gguf(tmp_path / "two" / name)
    with pytest.raises(FormatRefused, match=rf"{tmp_path}/two contains several models"):
        fetch_model(store, str(tmp_path / "two"))
    assert fetch_model(store, str(tmp_path / "two" / "a.gguf"))[0].label == "a@v1"


def test_damaged_gguf_is_refused_before_it_is_copied(store: Store, tmp_path: Path) -> None:
    path = Llama().write_gguf(tmp_path / "cut.gguf")
    os.truncate(path, 1000)
    seen: list[Progress] = []
    with pytest.raises(IntegrityError, match=rf"{path} is damaged"):
        fetch_model(store, str(path), on_progress=seen.append)
    assert seen == []


def test_empty_folder_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatRefused, match="empty contains no model"):
        fetch_model(store, str(tmp_path / "empty"))


def test_copy_that_fills_the_disk_is_told(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", refuse)
        with pytest.raises(SourceError, match=r"the disk is full while fetching .*THRIFTY_HOME"):
            fetch_model(store, str(folder))
    assert store.versions() == []
    assert fetch_model(store, str(folder))[0].label == "my-model@v1"


def test_folder_that_cannot_be_read_is_told(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(SourceError, match=r"could not be fetched: .*Permission denied: 'model.s"):
        fetch_model(store, str(folder))


def test_copy_that_was_cut_short_is_begun_anew(store: Store, folder: Path) -> None:
    """Files that a killed copy left in the stage must not get into the model."""
    version, _ = fetch_model(store, str(folder))
    requested = version.lineage.requested
    assert requested is not None
    store.remove(version.label)
    store.collect_garbage()
    with store.stage(requested) as stage:
        (stage / "model").mkdir()
        (stage / "model" / "left.json").write_text(json.dumps({}))
    again, _ = fetch_model(store, str(folder))
    assert again.artifact == version.artifact
