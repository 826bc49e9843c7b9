"""Adapters as files: written, read, merged, joined, and refused where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.adapters import make_lora, put_adapter
from tests.artifacts.models import Llama
from tests.artifacts.stored import damage
from thrifty.artifacts import Artifact, Lineage, NamedVersion, Store
from thrifty.artifacts.bases import find_base
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.inspect import inspect_model
from thrifty.artifacts.lora import join, read_config, read_lora
from thrifty.errors import ArtifactError, FormatRefused, IntegrityError
from thrifty.types import Format

MATRIX = "model.layers.1.mlp.down_proj"
Model = tuple[NamedVersion, Artifact]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def base(store: Store) -> Model:
    with store.stage("base") as stage:
        return store.add(Llama().write_safetensors(stage / "model"), "base", Lineage())


def read(store: Store, artifact: Artifact) -> np.ndarray:
    return load_decoder(store.folder_of(artifact.id)).tensors.read_tensor(f"{MATRIX}.weight")


def copy(store: Store, adapter: Artifact, folder: Path) -> Path:
    """The files of an adapter, to be changed."""
    folder.mkdir()
    for path in store.folder_of(adapter.id).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_adapter_is_read_as_its_base_with_the_changes(store: Store, base: Model) -> None:
    lora = make_lora(store, base[1], rank=3)
    version, artifact = put_adapter(store, base, lora)
    described = artifact.description
    assert (described.format, described.architecture) == (Format.ADAPTER, "LlamaForCausalLM")
    assert described.base is not None
    assert (described.base.id, described.base.name) == (base[1].id, "base@v1")
    assert described.parameters > base[1].description.parameters
    assert artifact.size_bytes < base[1].size_bytes
    down, up = lora.matrices[MATRIX]
    np.testing.assert_allclose(
        read(store, artifact), read(store, base[1]) + 2 * up @ down, atol=5e-3
    )
    norm = "model.norm.weight"
    for one in (base[1], artifact):
        assert norm in load_decoder(store.folder_of(one.id)).tensors
    assert find_base(store, artifact) == base
    store.verify(artifact, thorough=True)
    assert version.label == "tuned@v1"


def test_two_adapters_joined_change_what_both_do(store: Store, base: Model) -> None:
    first, second = (make_lora(store, base[1], rank=2 + seed, seed=seed) for seed in (0, 1))
    only = dict(second.matrices)
    del only[MATRIX]
    both = join(first, second)
    assert (both.rank, both.scale) == (5, 2.0)
    np.testing.assert_allclose(
        both.read_change(MATRIX), first.read_change(MATRIX) + second.read_change(MATRIX), atol=1e-5
    )
    lacking = join(first, type(second)(second.rank, 0.5, only))
    np.testing.assert_allclose(lacking.read_change(MATRIX), first.read_change(MATRIX), atol=1e-5)
    assert lacking.matrices[MATRIX][0].shape[0] == 5
    again = put_adapter(store, base, both)[1]
    np.testing.assert_allclose(
        read(store, again), read(store, base[1]) + both.read_change(MATRIX), atol=1e-2
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "is of the type 'IA3'"),
        ({"r": 0}, "'r' is 0"),
        ({"use_dora": True}, "sets use_dora; only adapters that add low-rank changes"),
        ({"bias": "all"}, "sets bias"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"r": 3}, "its rank is 3"),
    ],
)
def test_what_is_more_than_low_rank_changes_is_refused(
    store: Store, base: Model, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    _, adapter = put_adapter(store, base, make_lora(store, base[1]))
    folder = copy(store, adapter, tmp_path / "changed")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises((FormatRefused, IntegrityError), match=said):
        read_lora(folder)


def test_scales_are_those_of_peft(store: Store, base: Model, tmp_path: Path) -> None:
    _, adapter = put_adapter(store, base, make_lora(store, base[1]))
    folder = copy(store, adapter, tmp_path / "changed")
    assert read_config(folder) == (4, 2.0)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_rslora": True}))
    assert read_config(folder) == (4, 4.0)


def test_damaged_files_are_found(store: Store, base: Model, tmp_path: Path) -> None:
    _, adapter = put_adapter(store, base, make_lora(store, base[1]))
    cut = copy(store, adapter, tmp_path / "cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for use in (inspect_model, read_lora):
        with pytest.raises(IntegrityError, match="is damaged"):
            use(cut)
    nameless = copy(store, adapter, tmp_path / "nameless")
    for base in (None, "base@v1", {"id": "../../elsewhere", "name": "base@v1"}, {"id": "0" * 24}):
        (nameless / "thrifty.json").write_text(json.dumps({"base": base}))
        for use in (inspect_model, load_decoder):
            with pytest.raises(IntegrityError, match="names no base model"):
                use(nameless)
    (nameless / "thrifty.json").unlink()
    with pytest.raises(FormatRefused, match="nothing says which stored model it belongs to"):
        inspect_model(nameless)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(FormatRefused, match="pickle"):
        read_lora(pickled)


def test_a_base_stays_as_long_as_adapters_need_it(store: Store, base: Model) -> None:
    put_adapter(store, base, make_lora(store, base[1]))
    with pytest.raises(ArtifactError, match=r"'base@v1' is the base of the adapters tuned@v1"):
        store.remove("base@v1")
    with store.stage("again") as stage:
        store.add(Llama().write_safetensors(stage / "model"), "other", Lineage())
    store.remove("base@v1")  # it has another name
    with pytest.raises(ArtifactError, match="is the base"):
        store.remove("other@v1")
    (store.root / "names" / "other.json").unlink()  # as an earlier release removes it
    assert not store.collect_garbage().artifacts
    store.remove("tuned@v1")
    assert len(store.collect_garbage().artifacts) == 2


def test_a_base_that_is_gone_or_changed_is_named(store: Store, base: Model) -> None:
    _, adapter = put_adapter(store, base, make_lora(store, base[1]))
    damage(store.folder_of(base[1].id) / "model.safetensors", b"12345678")
    with pytest.raises(IntegrityError, match="its checksum has changed"):
        store.verify(adapter)
    store.folder_of(base[1].id).rename(store.root / "gone")
    with pytest.raises(ArtifactError, match=r"changes base@v1 .* fetch that model again"):
        store.verify(adapter)
    with pytest.raises(IntegrityError, match=r"base@v1 .* is not in the store any more"):
        load_decoder(store.folder_of(adapter.id))
