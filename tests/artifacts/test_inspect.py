"""Inspection of a folder: what it contains, or why it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from tests.artifacts.models import Llama, write_model, write_safetensors
from thrifty.artifacts import Description
from thrifty.artifacts.inspect import PICKLE_SUFFIXES, inspect_model
from thrifty.errors import FormatRefused, IntegrityError
from thrifty.types import Family, Format


def test_gguf_is_described(tmp_path: Path) -> None:
    llama = Llama(hidden=32)
    llama.write_gguf(tmp_path / "m.gguf", quantization=GGMLQuantizationType.Q8_0)
    parameters = sum(tensor.size for tensor in llama.make_tensors().values())
    assert inspect_model(tmp_path) == Description(
        Format.GGUF, Family.DECODER, "llama", 64, parameters, "q8_0"
    )


def test_safetensors_decoder_is_described(tmp_path: Path) -> None:
    llama = Llama(kind="qwen2")
    llama.write_safetensors(tmp_path, torch_dtype="bfloat16")
    parameters = sum(tensor.size for tensor in llama.make_tensors().values())
    assert inspect_model(tmp_path) == Description(
        Format.SAFETENSORS, Family.DECODER, "Qwen2ForCausalLM", 64, parameters, "bfloat16"
    )


@pytest.mark.parametrize("sign", ["architecture", "modules"])
def test_encoder_is_told_from_a_decoder(tmp_path: Path, sign: str) -> None:
    write_model(tmp_path)
    named = {"architectures": ["BertModel"]} if sign == "architecture" else {"model_type": "x"}
    (tmp_path / "config.json").write_text(json.dumps({**named, "max_position_embeddings": 512}))
    if sign == "modules":
        (tmp_path / "modules.json").write_text("[]")
    found = inspect_model(tmp_path)
    assert (found.family, found.context_length) == (Family.ENCODER, 512)


def write_openvino(folder: Path, note: Any = None, config: Any = None) -> None:
    (folder / "openvino_model.xml").write_text("<net/>")
    (folder / "openvino_model.bin").write_bytes(b"")
    for name, value in (("thrifty.json", note), ("config.json", config)):
        if value is not None:
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_our_own_openvino_folder_is_described_by_its_note(tmp_path: Path) -> None:
    note = {"family": "encoder", "architecture": "BertModel", "context_length": 512,
            "parameters": 7, "weights": "int8"}  # fmt: skip
    write_openvino(tmp_path, note)
    assert inspect_model(tmp_path) == Description(
        Format.OPENVINO, Family.ENCODER, "BertModel", 512, 7, "int8"
    )


def test_openvino_folder_of_others_is_described_by_its_config(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
    write_openvino(tmp_path, config=config)
    assert inspect_model(tmp_path) == Description(
        Format.OPENVINO, Family.DECODER, "LlamaForCausalLM", 2048
    )


def test_openvino_folder_without_its_weights_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    with pytest.raises(IntegrityError, match=r"without openvino_model.bin"):
        inspect_model(tmp_path)


@pytest.mark.parametrize(
    "note",
    ["{", "[]", "{}", {"family": "other"}, {"family": "decoder"},
     {"family": "decoder", "context_length": "long"},
     {"family": "decoder", "context_length": 5, "parameters": -1}],
)  # fmt: skip
def test_damaged_note_is_named(tmp_path: Path, note: Any) -> None:
    write_openvino(tmp_path, note)
    with pytest.raises(IntegrityError, match=r"thrifty\.json"):
        inspect_model(tmp_path)


@pytest.mark.parametrize("suffix", sorted(PICKLE_SUFFIXES))
def test_pickle_is_refused_with_the_reason(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / f"pytorch_model{suffix}").write_bytes(b"\x80\x04.")
    with pytest.raises(FormatRefused) as refusal:
        inspect_model(tmp_path)
    said = str(refusal.value)
    assert f"only as pickle (pytorch_model{suffix}), which can run code when it is read" in said
    assert "safe_serialization=True" in said


def test_pickle_beside_safetensors_is_no_fault(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert inspect_model(tmp_path).format is Format.SAFETENSORS


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(
        FormatRefused,
        match=r"contains no model: there is no .safetensors, .gguf or openvino_model.xml",
    ):
        inspect_model(tmp_path)


def test_several_ggufs_are_ambiguous_and_all_are_named(tmp_path: Path) -> None:
    for name in ("b-q8.gguf", "a-q4.gguf"):
        Llama().write_gguf(tmp_path / name)
    with pytest.raises(FormatRefused, match=r"several models \(a-q4.gguf, b-q8.gguf\); name one"):
        inspect_model(tmp_path)


def test_safetensors_without_a_config_are_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": np.zeros(1, np.float32)})
    with pytest.raises(FormatRefused, match=r"no config.json; it must be a complete checkpoint"):
        inspect_model(tmp_path)


def test_adapters_and_optimizer_states_are_no_checkpoint(tmp_path: Path) -> None:
    for name in ("adapter_model", "optimizer", "training_args"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": np.zeros(1, np.float32)})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatRefused, match="contains no model"):
        inspect_model(tmp_path)


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", "\xff", "[" * 100_000, '{"max_position_embeddings": "many"}',
     '{"max_position_embeddings": -5}', '{"max_position_embeddings": [1]}'],
    ids=range(8),
)  # fmt: skip
def test_damaged_config_is_named(tmp_path: Path, config: str) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"config\.json"):
        inspect_model(tmp_path)


@pytest.mark.parametrize("architectures", ["Odd", 7, [7], [], None, {}, [[]]])
def test_odd_architectures_are_told_as_text(tmp_path: Path, architectures: Any) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert isinstance(inspect_model(tmp_path).architecture, str)


@pytest.mark.parametrize("architecture", [None, "", "two words", "\ud800", "x" * 500])
def test_gguf_that_names_no_architecture_is_no_model(
    tmp_path: Path, architecture: str | None
) -> None:
    path = Llama().write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    if architecture is None:
        data = data.replace(b"general.architecture", b"general.archi_ecture")
    else:
        name = architecture.encode(errors="surrogatepass")
        old = b"\x05\0\0\0\0\0\0\0llama"
        assert data.count(old) == 1
        data = data.replace(old, len(name).to_bytes(8, "little") + name)
    path.write_bytes(data + bytes(64))
    with pytest.raises(IntegrityError, match="names no architecture"):
        inspect_model(tmp_path)
