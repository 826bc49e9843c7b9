"""A decoder that is written and read again is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts.models import Llama
from thrifty.artifacts import write_checkpoint
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.safetensors_file import SafetensorsFiles, write_safetensors
from thrifty.artifacts.write_checkpoint import write_decoder


@pytest.mark.parametrize(
    "model",
    [Llama(), Llama(tied=False), Llama(kind="qwen2"), Llama(kind="qwen3", head_dim=16), Llama(biases=True)],
    ids=["tied", "untied", "qwen2", "qwen3", "biases"],
)  # fmt: skip
@pytest.mark.parametrize("shards", [1, 3])
def test_it_reads_back(
    tmp_path: Path, model: Llama, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_decoder(model.write_safetensors(tmp_path / "a", eos_token_id=[2, 3]))
    names = SafetensorsFiles((tmp_path / "a").glob("*.safetensors")).names
    if shards > 1:
        monkeypatch.setattr(write_checkpoint, "SHARD_BYTES", 4000)
    write_decoder(before, tmp_path / "b")
    after = load_decoder(tmp_path / "b")
    assert after.shape == before.shape
    files = list((tmp_path / "b").glob("*.safetensors"))
    assert (len(files) > 1) == (shards > 1)
    assert (tmp_path / "b" / "model.safetensors.index.json").exists() == (shards > 1)
    for name in names:
        np.testing.assert_allclose(
            after.tensors.read_tensor(name), before.tensors.read_tensor(name), rtol=1e-3, atol=1e-6
        )
    assert not list((tmp_path / "b").glob("*.part"))


def test_a_gguf_becomes_a_checkpoint(tmp_path: Path) -> None:
    path = Llama(tied=False).write_gguf(tmp_path / "m.gguf")
    before = load_decoder(path.parent)
    write_decoder(before, tmp_path / "out")
    after = load_decoder(tmp_path / "out")
    assert replace(after.shape, architecture="") == replace(before.shape, architecture="")
    name = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_allclose(
        after.tensors.read_tensor(name), before.tensors.read_tensor(name), rtol=1e-3, atol=1e-6
    )


def test_values_beyond_float16_are_kept_in_bfloat16(tmp_path: Path) -> None:
    values = np.array([[1e5, -3.0], [0.1, 70000.0]], np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"x": values, "y": values / 1e5})
    files = SafetensorsFiles([tmp_path / "a.safetensors"])
    np.testing.assert_allclose(files.read_tensor("x"), values, rtol=2**-8)
    np.testing.assert_allclose(files.read_tensor("y"), values / 1e5, rtol=2**-10, atol=1e-7)
