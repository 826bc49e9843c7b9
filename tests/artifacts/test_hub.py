"""Models from a hub: a small server with the parts of the Hugging Face API that are used."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama, encode_safetensors
from tests.artifacts.web import Page, WebServer
from tests.parts import wait_until
from thrifty.artifacts import Store
from thrifty.artifacts.sources import download as download_module
from thrifty.artifacts.sources import fetch_model
from thrifty.errors import FormatRefused, IntegrityError, SourceError
from thrifty.types import Format, Progress

FIRST, SECOND = "1" * 40, "2" * 40
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
WEIGHTS = encode_safetensors({"w": np.arange(5000, dtype=np.float32)})
LARGE = (".safetensors", ".gguf", ".bin")
"""The files that a hub stores as LFS objects and publishes a SHA-256 of."""


@dataclass
class Hub:
    """Repositories on a web server with the hub's API."""

    web: WebServer
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """The commits of each repository with their files, latest last."""
    forged: str = ""

    def __post_init__(self) -> None:
        self.web.fallback = self._answer

    def push(self, repository: str, commit: str, files: dict[str, bytes]) -> dict[str, Page]:
        """Add a commit; returns the pages of its files."""
        self.commits.setdefault(repository, {})[commit] = files
        return {
            name: self.web.add(f"/{repository}/resolve/{commit}/{name}", data)
            for name, data in files.items()
        }

    def _answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        commits = self.commits.get(repository)
        if not path.startswith("/api/models/") or commits is None:
            return 404, {"x-error-code": "RepoNotFound"}, b'{"error":"Repository not found"}'
        commit = list(commits)[-1] if revision in ("", "main") else revision
        if commit not in commits:
            return 404, {"x-error-code": "RevisionNotFound"}, b'{"error":"Invalid rev id"}'
        body = {
            "id": repository, "sha": commit, "private": False, "tags": [],
            "siblings": [self._describe(n, d) for n, d in commits[commit].items()],
        }  # fmt: skip
        return 200, {"content-type": "application/json"}, json.dumps(body).encode()

    def _describe(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        described: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith(LARGE):
            sha256 = self.forged or hashlib.sha256(data).hexdigest()
            described["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return described


@pytest.fixture
def hub(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub for `hf:` in this test."""
    monkeypatch.setenv("HF_ENDPOINT", f"{web.url}/")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(download_module, "RETRY_DELAY_S", 0.001)
    return Hub(web)


CHECKPOINT = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}",
              "README.md": b"# hello", "pytorch_model.bin": b"x" * 9000,
              "onnx/model.onnx": b"x" * 9000}  # fmt: skip


def files_of(store: Store, label: str) -> list[str]:
    return sorted(entry.path for entry in store.find(label)[1].files)


def test_checkpoint_becomes_a_version_without_its_pickles(hub: Hub, store: Store) -> None:
    pages = hub.push("Org/Tiny-1.5B", FIRST, CHECKPOINT)
    seen: list[Progress] = []
    version, artifact = fetch_model(store, "hf:Org/Tiny-1.5B", on_progress=seen.append)
    assert version.label == "tiny-1.5b@v1"
    assert version.lineage.requested == "hf:Org/Tiny-1.5B"
    assert version.lineage.source == f"hf:Org/Tiny-1.5B@{FIRST}"
    assert files_of(store, "tiny-1.5b") == ["config.json", "model.safetensors", "tokenizer.json"]
    assert artifact.description.format is Format.SAFETENSORS
    assert pages["pytorch_model.bin"].requests == pages["onnx/model.onnx"].requests == []
    down = [p for p in seen if p.step == "download"]
    total = sum(entry.size for entry in artifact.files)
    assert down[-1] == Progress("download", total, total)
    assert [p.done for p in down] == sorted(p.done for p in down)
    assert {p.total for p in down} == {total}


def test_stored_model_is_not_asked_for_again_and_a_refresh_finds_the_same(
    hub: Hub, store: Store
) -> None:
    hub.push("org/tiny", FIRST, CHECKPOINT)
    first = fetch_model(store, "hf:org/tiny")
    asked = len(hub.web.log)
    assert fetch_model(store, "hf:org/tiny") == first
    assert len(hub.web.log) == asked
    assert fetch_model(store, "hf:org/tiny", refresh=True) == first


def test_moved_repository_is_seen_by_a_refresh(hub: Hub, store: Store) -> None:
    hub.push("org/tiny", FIRST, CHECKPOINT)
    first, _ = fetch_model(store, "hf:org/tiny")
    hub.push("org/tiny", SECOND, {**CHECKPOINT, "tokenizer.json": b'{"a": 1}'})
    assert fetch_model(store, "hf:org/tiny")[0] == first
    second, _ = fetch_model(store, "hf:org/tiny", refresh=True)
    assert second.label == "tiny@v2"
    assert second.lineage.source == f"hf:org/tiny@{SECOND}"


def test_revision_is_pinned(hub: Hub, store: Store) -> None:
    hub.push("org/tiny", FIRST, CHECKPOINT)
    hub.push("org/tiny", SECOND, {**CHECKPOINT, "tokenizer.json": b'{"a": 1}'})
    version, artifact = fetch_model(store, f"hf:org/tiny@{FIRST}")
    assert version.lineage.source == f"hf:org/tiny@{FIRST}"
    assert (store.folder_of(artifact.id) / "tokenizer.json").read_bytes() == b"{}"
    latest, _ = fetch_model(store, "hf:org/tiny@main")
    assert latest.lineage.source == f"hf:org/tiny@{SECOND}"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Llama().write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


def test_only_gguf_is_taken_wherever_it_lies(hub: Hub, store: Store, gguf: bytes) -> None:
    hub.push("org/tiny-gguf", FIRST, {"README.md": b"", "Q8_0/tiny-Q8_0.gguf": gguf})
    version, artifact = fetch_model(store, "hf:org/tiny-gguf")
    assert version.label == "tiny-gguf@v1"
    assert files_of(store, "tiny-gguf") == ["tiny-Q8_0.gguf"]
    assert artifact.description.format is Format.GGUF


def test_one_of_several_ggufs_is_named(hub: Hub, store: Store, gguf: bytes) -> None:
    pages = hub.push("org/many", FIRST, {"a.Q4.gguf": gguf, "sub/b.Q8.gguf": gguf})
    with pytest.raises(
        FormatRefused,
        match=r"org/many contains several models; name one: hf:org/many:a.Q4.gguf, "
        r"hf:org/many:sub/b.Q8.gguf",
    ):
        fetch_model(store, "hf:org/many")
    version, _ = fetch_model(store, "hf:org/many:sub/b.Q8.gguf")
    assert version.label == "b.q8@v1"
    assert version.lineage.source == f"hf:org/many@{FIRST}:sub/b.Q8.gguf"
    assert files_of(store, "b.q8") == ["b.Q8.gguf"]
    assert pages["a.Q4.gguf"].requests == []
    with pytest.raises(SourceError, match=r"has no file 'c.gguf'; its .gguf files: a.Q4.gguf, sub"):
        fetch_model(store, "hf:org/many:c.gguf")


def test_gguf_of_a_revision_is_named(hub: Hub, store: Store, gguf: bytes) -> None:
    hub.push("org/many", FIRST, {"a.gguf": gguf, "b.gguf": gguf})
    hub.push("org/many", SECOND, {})
    version, _ = fetch_model(store, f"hf:org/many@{FIRST}:b.gguf")
    assert version.lineage.source == f"hf:org/many@{FIRST}:b.gguf"


def test_repository_of_pickles_is_refused_without_a_download(hub: Hub, store: Store) -> None:
    pages = hub.push("org/old", FIRST, {"config.json": CONFIG, "pytorch_model.bin": b"x"})
    with pytest.raises(
        FormatRefused, match=r"org/old has weights only as pickle, which can run code"
    ):
        fetch_model(store, "hf:org/old")
    assert all(page.requests == [] for page in pages.values())


def test_repository_without_a_model_is_refused(hub: Hub, store: Store) -> None:
    hub.push("org/data", FIRST, {"README.md": b"", "train.parquet": b""})
    with pytest.raises(FormatRefused, match="org/data contains no supported model"):
        fetch_model(store, "hf:org/data")


def test_openvino_repository_is_taken_whole(hub: Hub, store: Store) -> None:
    files = {"openvino_model.xml": b"<net/>", "openvino_model.bin": b"x", "config.json": CONFIG,
             "README.md": b""}  # fmt: skip
    hub.push("org/tiny-ov", FIRST, files)
    _, artifact = fetch_model(store, "hf:org/tiny-ov")
    assert artifact.description.format is Format.OPENVINO
    assert files_of(store, "tiny-ov") == ["config.json", "openvino_model.bin", "openvino_model.xml"]


@pytest.mark.parametrize("reference", ["org/none", "org/none:m.gguf", f"org/tiny@{SECOND}"])
def test_what_the_hub_does_not_have_is_told(hub: Hub, store: Store, reference: str) -> None:
    hub.push("org/tiny", FIRST, CHECKPOINT)
    with pytest.raises(
        SourceError, match=rf"hf:{reference} could not be fetched: .*404.*Check the name"
    ):
        fetch_model(store, f"hf:{reference}")


def test_file_that_is_refused_is_told(hub: Hub, store: Store) -> None:
    pages = hub.push("org/gated", FIRST, CHECKPOINT)
    pages["model.safetensors"].statuses = [403]
    with pytest.raises(
        SourceError, match=r"model.safetensors answered 403; check the name and your"
    ):
        fetch_model(store, "hf:org/gated")


def test_hub_that_is_not_there_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"hf:org/tiny could not be fetched: .*the network"):
        fetch_model(store, "hf:org/tiny")


@pytest.mark.parametrize("reference", ["tiny", "org/", "/tiny", "a/b/c", "org/tiny:", "org/tiny:x"])
def test_references_that_are_none_are_refused(store: Store, reference: str) -> None:
    with pytest.raises(SourceError, match=r"is not valid; write hf:ORG/NAME"):
        fetch_model(store, f"hf:{reference}")


def test_token_goes_to_the_hub(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.push("org/tiny", FIRST, CHECKPOINT)
    fetch_model(store, "hf:org/tiny")
    assert {headers.get("authorization") for _, _, headers in hub.web.log} == {"Bearer hf_secret"}


def test_weights_that_are_not_what_the_hub_says_are_refused(hub: Hub, store: Store) -> None:
    hub.forged = "0" * 64
    hub.push("org/forged", FIRST, CHECKPOINT)
    with pytest.raises(IntegrityError, match=r"the index says 000000000000"):
        fetch_model(store, "hf:org/forged")
    assert store.versions() == []


def test_broken_connection_is_continued(hub: Hub, store: Store) -> None:
    pages = hub.push("org/tiny", FIRST, CHECKPOINT)
    weights = pages["model.safetensors"]
    weights.break_after = [8_000]
    fetch_model(store, "hf:org/tiny")
    assert weights.requests == [None, "bytes=8000-"]


_FETCHER = """
import sys
from pathlib import Path
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
fetch_model(Store(Path(sys.argv[1])), sys.argv[2])
"""


def start_and_kill(hub: Hub, store: Store, page: Page, size: int) -> int:
    """Start a fetch in a process and kill it during `page`; returns what it left of that file."""
    page.pause_after = size
    victim = subprocess.Popen([sys.executable, "-c", _FETCHER, str(store.root), "hf:org/big"])
    wait_until(lambda: sum(p.stat().st_size for p in store.root.rglob("*.part")) > size - 100_000)
    victim.kill()
    victim.wait()
    page.pause_after = None
    page.go_on.set()
    return next(store.root.rglob("*.part")).stat().st_size


BIG = encode_safetensors({"w": np.arange(500_000, dtype=np.float32)})


@pytest.mark.slow
def test_killed_fetch_is_continued_by_the_next(hub: Hub, store: Store) -> None:
    pages = hub.push("org/big", FIRST, {"config.json": CONFIG, "model.safetensors": BIG})
    kept = start_and_kill(hub, store, pages["model.safetensors"], 1_000_000)
    _, artifact = fetch_model(store, "hf:org/big")
    store.verify(artifact, thorough=True)
    assert pages["model.safetensors"].requests == [None, f"bytes={kept}-"]
    assert pages["config.json"].requests == [None]
    assert files_of(store, "big") == ["config.json", "model.safetensors"]


@pytest.mark.slow
def test_what_was_kept_of_an_older_commit_is_not_mixed_with_the_newer(
    hub: Hub, store: Store
) -> None:
    pages = hub.push("org/big", FIRST, {"config.json": b'{"old": 1}', "model.safetensors": BIG})
    start_and_kill(hub, store, pages["model.safetensors"], 1_000_000)
    newer = encode_safetensors({"w": np.ones(500_000, dtype=np.float32)})
    hub.push("org/big", SECOND, {"config.json": CONFIG, "model.safetensors": newer})
    version, artifact = fetch_model(store, "hf:org/big")
    assert version.lineage.source == f"hf:org/big@{SECOND}"
    folder = store.folder_of(artifact.id)
    assert (folder / "config.json").read_bytes() == CONFIG
    assert (folder / "model.safetensors").read_bytes() == newer
