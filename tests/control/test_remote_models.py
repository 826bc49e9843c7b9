"""Models named by a remote's URL: fetched, prepared once for a kind of processor, and shared."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.control.test_plan import write_model
from thrifty.artifacts import Lineage, Store
from thrifty.artifacts.remotes import push, retries
from thrifty.artifacts.remotes.prepared import BackedStore, ProcessorKind
from thrifty.control.prepare import Prepared, prepare
from thrifty.engines.machine import detect_machine
from thrifty.errors import SpecError
from thrifty.home import Home
from thrifty.model_maker import Compressor
from thrifty.spec import parse_spec
from thrifty.types import Progress

KIND = ProcessorKind("x86_64", frozenset({"avx2"}), "1")
RECIPE = {"step": "test", "version": 1}


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A folder with the model `tiny`."""
    store = Store(tmp_path / "author")
    with store.stage("tiny") as folder:
        store.add(write_model(folder / "model"), "tiny", Lineage(source="pypi:tiny"))
    push(store, "tiny", str(tmp_path / "remote"))
    return tmp_path / "remote"


def make(home: Home, remote: Path, **keys: Any) -> tuple[Prepared, list[str]]:
    """What a spec with the remote's model comes to on a machine of its own, and the steps it took."""
    store, machine = Store(home.models), detect_machine()
    steps: list[str] = []

    def note(progress: Progress) -> None:
        if progress.step not in steps:
            steps.append(progress.step)

    spec = {"name": "chat", "model": f"file://{remote}/tiny@v1", "compress": "int8", **keys}
    loaded = parse_spec({"engine": "openvino", "benchmark": 0, **spec})
    return prepare(
        loaded, store, machine, note, maker=Compressor(home, store, machine)
    ), steps  # fmt: skip


def find_shared(remote: Path) -> list[Path]:
    return list((remote / "prepared").rglob("*.json"))


@pytest.mark.engine
def test_a_model_is_prepared_once_for_a_kind_of_processor(tmp_path: Path, remote: Path) -> None:
    first, steps = make(Home(tmp_path / "first"), remote)
    assert "convert" in steps
    assert not find_shared(remote), "nothing is written unless the spec says so"
    make(Home(tmp_path / "first"), remote, share=True)
    (path,) = find_shared(remote)
    manifest = json.loads(path.read_bytes())
    assert manifest["version"]["lineage"]["recipe"]["quantize"] == "int8"
    second, steps = make(Home(tmp_path / "second"), remote)
    assert "convert" not in steps
    assert "download" in steps
    ours, theirs = first.deployments["chat"], second.deployments["chat"]
    assert ours.versions[0].artifact == theirs.versions[0].artifact
    Store(tmp_path / "second" / "models").verify(
        Store(tmp_path / "second" / "models").load(str(theirs.versions[0].artifact)), thorough=True
    )
    _, steps = make(Home(tmp_path / "second"), remote, share=True)
    assert set(steps) <= {"check"}, "the second time nothing is moved or made"


@pytest.mark.engine
def test_a_remote_that_takes_nothing_costs_only_the_sharing(
    tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (remote / "prepared").write_text("a file in the way")
    with caplog.at_level(logging.WARNING):
        prepared, _ = make(Home(tmp_path / "first"), remote, share=True)
    assert prepared.deployments["chat"].versions[0].artifact is not None
    assert "could not be shared" in caplog.text


def make_prepared(store: BackedStore, parent: str, content: int) -> None:
    """What an engine would make of a model."""
    from thrifty.artifacts import Parent

    with store.stage(f"made {content}") as folder:
        model = write_model(folder / "model")
        (model / "thrifty.txt").write_text(str(content))
        store.add(model, "made", Lineage(parents=(Parent(parent, "tiny@v1"),), recipe=RECIPE))


def back(root: Path, remote: Path, kind: ProcessorKind = KIND) -> BackedStore:
    return BackedStore(root, f"file://{remote}/tiny@v1", kind, lambda progress: None)


def test_what_is_prepared_depends_on_recipe_processor_and_engine(
    tmp_path: Path, remote: Path
) -> None:
    maker = back(tmp_path / "maker", remote)
    make_prepared(maker, "0" * 24, 1)
    version, artifact = maker.find_made("0" * 24, RECIPE) or pytest.fail("it was made")
    assert maker.share(version, artifact)
    assert not maker.share(version, artifact)
    others = [
        ProcessorKind("x86_64", frozenset({"avx2", "avx512f"}), "1"),
        ProcessorKind("aarch64", frozenset({"avx2"}), "1"),
        ProcessorKind("x86_64", frozenset({"avx2"}), "2"),
    ]
    for number, kind in enumerate(others):
        assert back(tmp_path / f"other-{number}", remote, kind).find_made("0" * 24, RECIPE) is None
    same = back(tmp_path / "same", remote)
    assert same.find_made("0" * 24, {**RECIPE, "version": 2}) is None
    assert same.find_made("1" * 24, RECIPE) is None
    found = same.find_made("0" * 24, RECIPE)
    assert found is not None
    assert found[1] == artifact
    assert same.pulled == {artifact.id}


def test_the_first_result_stays(tmp_path: Path, remote: Path) -> None:
    first, second = back(tmp_path / "first", remote), back(tmp_path / "second", remote)
    made = []
    for content, store in enumerate((first, second)):
        make_prepared(store, "0" * 24, content)
        found = store.find_made("0" * 24, RECIPE)
        assert found is not None
        made.append(found[1].id)
        assert store.share(*found) == (content == 0)
    assert made[0] != made[1]
    third = back(tmp_path / "third", remote).find_made("0" * 24, RECIPE)
    assert third is not None
    assert third[1].id == made[0]


@pytest.mark.parametrize("damage", ["lie", "other recipe", "no manifest"])
def test_what_was_prepared_elsewhere_and_is_damaged_is_made_here(
    tmp_path: Path, remote: Path, damage: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(retries, "DELAY_S", 0.01)
    maker = back(tmp_path / "maker", remote)
    make_prepared(maker, "0" * 24, 1)
    found = maker.find_made("0" * 24, RECIPE)
    assert found is not None
    maker.share(*found)
    (path,) = find_shared(remote)
    if damage == "lie":
        for blob in (remote / "blobs" / "sha256").iterdir():
            blob.write_bytes(b"?" * blob.stat().st_size)
    elif damage == "other recipe":
        path.write_text(path.read_text().replace('"step": "test"', '"step": "evil"'))
    else:
        path.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert back(tmp_path / "other", remote).find_made("0" * 24, RECIPE) is None
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model": "pypi:tiny", "share": True},
            "share: has nothing to share: 'pypi:tiny' is in no",
        ),
        ({"engine": "echo", "share": True}, "share: has nothing to share: the engine 'echo' loads"),
        ({"model": "s3://u:hush@b/tiny"}, "model: the URL s3://b/tiny has a user name"),
        ({"model": "oci://Host/tiny:"}, "model: .* has no valid tag"),
    ],
)
def test_what_a_spec_may_not_say(
    home: Home, remote: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as error:
        make(home, remote, **keys)
    assert "hush" not in str(error.value)
