"""What a source means, without fetching it: sizes and names are told, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.artifacts.models import Llama
from tests.artifacts.test_hub import CONFIG, FIRST, WEIGHTS, Hub
from tests.artifacts.test_pypi import gguf, index, publish
from tests.artifacts.web import WebServer
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model, look_up_model
from thrifty.errors import ArtifactError, FormatRefused, SourceError
from thrifty.types import Family

__all__ = ["gguf", "index"]


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_package_is_not_downloaded(index: WebServer, store: Store, gguf: bytes) -> None:
    page = publish(index, "tiny-model", {"tiny_model/m.gguf": gguf})
    found = look_up_model(store, "pypi:tiny-model")
    assert (found.stored, found.label) == (None, "tiny-model@v1")
    assert found.source == "pypi:tiny-model==1.0"
    assert found.size_bytes == len(page.body)
    assert page.sent == 0
    assert not store.root.exists() or not list_files(store.root)
    assert look_up_model(store, "pypi:nothing").fault.startswith("pip cannot find a wheel")


def test_the_hub_tells_sizes(web: WebServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", web.url)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub = Hub(web)
    pages = hub.push(
        "org/small", FIRST, {"config.json": CONFIG, "model.safetensors": WEIGHTS, "x.bin": b"0" * 9}
    )
    found = look_up_model(store, "hf:org/small")
    assert (found.label, found.source) == ("small@v1", f"hf:org/small@{FIRST}")
    assert found.size_bytes == len(CONFIG) + len(WEIGHTS)
    assert not any(page.sent for page in pages.values())
    assert "could not be fetched" in look_up_model(store, "hf:org/nothing").fault
    hub.push("org/old", FIRST, {"pytorch_model.bin": b"0"})
    with pytest.raises(FormatRefused, match="only as pickle"):
        look_up_model(store, "hf:org/old")


def test_a_file_is_looked_into_and_not_copied(tmp_path: Path, store: Store) -> None:
    path = Llama().write_gguf(tmp_path / "tiny.gguf")
    found = look_up_model(store, str(path))
    assert (found.stored, found.label) == (None, "tiny@v1")
    assert found.size_bytes == path.stat().st_size
    assert found.description is not None
    assert found.description.family is Family.DECODER
    assert not store.root.exists() or not list_files(store.root)
    version, artifact = fetch_model(store, str(path))
    before = list_files(store.root)
    again = look_up_model(store, str(path))
    assert again.stored == (version, artifact)
    assert (again.label, again.size_bytes) == ("tiny@v1", None)
    assert look_up_model(store, "tiny").stored == (version, artifact)
    assert list_files(store.root) == before
    path.write_bytes(path.read_bytes())
    (tmp_path / "other").mkdir()
    other = Llama().write_gguf(tmp_path / "other" / "tiny.gguf")
    assert look_up_model(store, str(other)).label == "tiny@v2", "the next version of that name"


def test_what_cannot_be_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        look_up_model(store, "./nowhere")
    with pytest.raises(SourceError, match="unknown source kind"):
        look_up_model(store, "ftp:x")
    with pytest.raises(ArtifactError, match="no model is named"):
        look_up_model(store, "nothing")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "config.json").write_text(json.dumps({}))
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"0")
    with pytest.raises(FormatRefused, match="pickle"):
        look_up_model(store, str(tmp_path / "pickle"))
