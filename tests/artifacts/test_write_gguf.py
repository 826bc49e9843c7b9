"""Checkpoints written as GGUF are the same when read back, including the tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as after

from tests.artifacts.models import Llama, gguf_name, interleave
from tests.artifacts.test_gguf_tokenizer import LLAMA3_PATTERN, QWEN2_PATTERN, make_reference
from tests.artifacts.vocabulary import make_gpt2_metadata
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_vocabulary import check_same_tokens, read_tokenizer
from thrifty.artifacts.write_gguf import encode_floats, read_content, write_gguf
from thrifty.errors import FormatRefused, IntegrityError, ThriftyError
from thrifty.graphs.decoder import compute_rope_frequencies

SIZE = 400
F32, F16 = 0, 1


def write(folder: Path, target: Path, kind: int = F32) -> GgufFile:
    """Write the model in `folder` as GGUF."""
    content = read_content(folder, "tiny")
    types = {t.name: kind if len(t.shape) > 1 else F32 for t in content.tensors}
    target.mkdir(exist_ok=True)
    write_gguf(target / "model.gguf", content, types, encode_floats, {})
    return GgufFile(target / "model.gguf")


def put(folder: Path, model: Llama, tokenizer: Tokenizer | None = None, **changes: Any) -> Path:
    """Write the model as a transformers folder with a tokenizer."""
    model.write_safetensors(folder, **changes)
    (tokenizer or make_reference("smollm")).save(str(folder / "tokenizer.json"))
    return folder


MODELS = {
    "llama, tied": Llama(vocab=SIZE),
    "llama, biases, a head": Llama(vocab=SIZE, tied=False, biases=True),
    "qwen2": Llama(kind="qwen2", vocab=SIZE),
    "qwen3, a head": Llama(kind="qwen3", vocab=SIZE, tied=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_read_back_as_they_were(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    source = put(tmp_path / "a", model)
    file = write(source, tmp_path / "b")
    before, after = load_decoder(source), load_decoder(tmp_path / "b")
    tensors = model.make_tensors()
    assert set(file.tensors) == {gguf_name(tensor) for tensor in tensors}
    for tensor, values in tensors.items():
        np.testing.assert_array_equal(after.tensors.read_tensor(tensor), values)
    # llama.cpp reorders the rows of queries and keys in pairs, only for llama.
    query = tensors["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(
        file.read_tensor("blk.1.attn_q.weight"),
        interleave(query, model.heads) if model.kind == "llama" else query,
    )
    assert dataclasses.replace(
        after.shape, architecture=before.shape.architecture, norm_epsilon=1e-5
    ) == dataclasses.replace(before.shape, norm_epsilon=1e-5)
    assert after.shape.norm_epsilon == pytest.approx(before.shape.norm_epsilon)
    assert after.shape.architecture == model.kind


def test_metadata_have_the_types_that_llama_cpp_expects(tmp_path: Path) -> None:
    model = Llama(vocab=SIZE)
    file = write(put(tmp_path / "a", model), tmp_path / "b")
    written = model.write_gguf(tmp_path / "c.gguf", extra=make_gpt2_metadata(SIZE, "smollm"))
    expected = GgufFile(written).kinds
    common = set(expected) & set(file.kinds)
    assert len(common) > 15
    assert {key: file.kinds[key] for key in common} == {key: expected[key] for key in common}
    assert file.metadata["llama.block_count"] == model.layers
    assert file.metadata["llama.feed_forward_length"] == model.inner
    # llama.cpp's own package accepts the file.
    reader = gguf.GGUFReader(tmp_path / "b" / "model.gguf")
    assert len(reader.tensors) == len(file.tensors)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 32},
        {"rope_type": "linear", "factor": 2.0},
    ],
    ids=["llama3", "linear"],
)  # fmt: skip
def test_rotary_scaling_is_kept(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = Llama(vocab=SIZE, head_dim=16, theta=100.0)
    source = put(tmp_path / "a", model, rope_scaling=rope)
    write(source, tmp_path / "b")
    before, after = load_decoder(source), load_decoder(tmp_path / "b")
    np.testing.assert_allclose(
        compute_rope_frequencies(after.shape, after.tensors),
        compute_rope_frequencies(before.shape, before.tensors),
        rtol=1e-6,
    )
    plain = dataclasses.replace(before.shape, rope_scaling=None)
    scaled = compute_rope_frequencies(before.shape, before.tensors)
    assert not np.allclose(scaled, compute_rope_frequencies(plain, before.tensors))


def test_a_gguf_keeps_its_metadata_and_its_order(tmp_path: Path) -> None:
    extra = {
        **make_gpt2_metadata(SIZE, "smollm", add_bos_token=False),
        "general.name": "Kept", "general.file_type": 2, "general.quantization_version": 2,
        "tokenizer.chat_template": "{{ messages }}", "general.tags": ["a", "ü"],
    }  # fmt: skip
    (tmp_path / "a").mkdir()
    kind = gguf.GGMLQuantizationType.Q4_1
    path = Llama(vocab=SIZE).write_gguf(tmp_path / "a" / "old.gguf", extra=extra, quantization=kind)
    old, new = GgufFile(path), write(tmp_path / "a", tmp_path / "b")
    gone = {"general.file_type", "general.quantization_version"}
    assert new.metadata == {k: v for k, v in old.metadata.items() if k not in gone}
    assert new.kinds == {k: v for k, v in old.kinds.items() if k not in gone}
    assert list(new.tensors) == list(old.tensors)
    for name in old.tensors:
        np.testing.assert_array_equal(new.read_tensor(name), old.read_tensor(name))


def test_tokens_that_are_no_text_are_kept(tmp_path: Path) -> None:
    metadata = make_gpt2_metadata(SIZE, "smollm")
    (tmp_path / "a").mkdir()
    path = Llama(vocab=SIZE).write_gguf(tmp_path / "a" / "old.gguf", extra=metadata)
    token = metadata["tokenizer.ggml.tokens"][-1].encode()
    data = path.read_bytes()
    broken = data.replace(token, b"\xff" * len(token))
    path.write_bytes(broken)
    assert broken != data
    new = write(tmp_path / "a", tmp_path / "b")
    assert new.metadata == GgufFile(path).metadata
    assert b"\xff" * len(token) in (tmp_path / "b" / "model.gguf").read_bytes()


# tokenizers


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_each_way_of_splitting_is_recognised(tmp_path: Path, pre: str) -> None:
    tokenizer = make_reference(pre)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    # The model's vocabulary is larger, as is usual.
    source = put(tmp_path / "a", Llama(vocab=SIZE + 9), tokenizer, pad_token_id=0)
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    file = write(source, tmp_path / "b")
    assert file.metadata["tokenizer.ggml.pre"] == pre
    assert file.metadata["tokenizer.ggml.add_bos_token"] is False
    assert file.metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{SIZE + 8}]"
    assert file.metadata["tokenizer.ggml.token_type"][-9:] == [4, *[5] * 8]
    assert file.metadata["tokenizer.chat_template"] == "{{ 1 }}"
    assert file.metadata["tokenizer.ggml.padding_token_id"] == 0
    check_same_tokens(tmp_path / "b" / "model.gguf", read_tokenizer(source / "tokenizer.json"))


def test_a_first_token_and_several_last_ones_are_kept(tmp_path: Path) -> None:
    tokenizer = make_reference("llama-bpe")
    tokenizer.post_processor = after.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    source = put(tmp_path / "a", Llama(vocab=SIZE), tokenizer, eos_token_id=[2, 0, 7])
    write(source, tmp_path / "b")
    check_same_tokens(tmp_path / "b" / "model.gguf", read_tokenizer(source / "tokenizer.json"))
    shape = load_decoder(tmp_path / "b").shape
    assert shape.bos_token_id == 1
    assert shape.eos_token_ids == (2, 0, 7)


def test_a_tokenizer_that_is_nearly_the_same_is_noticed(tmp_path: Path) -> None:
    file = write(put(tmp_path / "a", Llama(vocab=SIZE)), tmp_path / "b")
    with pytest.raises(FormatRefused, match="would split text differently"):
        check_same_tokens(file.path, make_reference("gpt-2"))
    grown = make_reference("smollm")
    grown.add_tokens(["<more>"])
    with pytest.raises(FormatRefused, match="'<more>' would be the token None"):
        check_same_tokens(file.path, grown)


def spaced(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])


def split_otherwise(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+|\w+"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )  # fmt: skip


def lower(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def end_too(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = after.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )


def merge_otherwise(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip


def forget_normalizing(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spaced, "'<mask>' absorbs adjacent spaces"),
        (split_otherwise, "pre-tokenizer has no name in GGUF"),
        (lower, "pre-tokenizer has no name in GGUF"),
        (merge_otherwise, "pre-tokenizer has no name in GGUF"),
        (forget_normalizing, "pre-tokenizer has no name in GGUF"),
        (end_too, "adds more to a text than one token"),
    ],
)
def test_what_gguf_cannot_express_is_refused(
    tmp_path: Path, change: Callable[[Tokenizer], None], message: str
) -> None:
    tokenizer = make_reference("smollm")
    change(tokenizer)
    source = put(tmp_path / "a", Llama(vocab=SIZE + 1), tokenizer)
    with pytest.raises(FormatRefused, match=message):
        read_content(source, "tiny")


def test_other_kinds_of_tokenizers_are_refused(tmp_path: Path) -> None:
    pieces = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[], byte_fallback=True))
    with pytest.raises(FormatRefused, match="the kind SentencePiece; only byte-level BPE"):
        read_content(put(tmp_path / "a", Llama(vocab=SIZE), pieces), "tiny")
    words = Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="a"))
    with pytest.raises(FormatRefused, match="the kind WordLevel"):
        read_content(put(tmp_path / "b", Llama(vocab=SIZE), words), "tiny")
    bytes_only = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    with pytest.raises(FormatRefused, match="no merges"):
        read_content(put(tmp_path / "c", Llama(vocab=SIZE), bytes_only), "tiny")
    with pytest.raises(FormatRefused, match="has a token 399, but the model only 300"):
        read_content(put(tmp_path / "d", Llama(vocab=300)), "tiny")
    bare = Llama(vocab=SIZE).write_safetensors(tmp_path / "e")
    with pytest.raises(FormatRefused, match=r"has no tokenizer\.json"):
        read_content(bare, "tiny")
    (bare / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError, match="is damaged"):
        read_content(bare, "tiny")


# bad weights


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.nan, IntegrityError, "not finite"),
        (1e6, OverflowError, "above 65504"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, value: float, error: type[Exception], message: str
) -> None:
    model = Llama(vocab=SIZE)
    tensors = model.make_tensors()
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = value
    source = put(tmp_path / "a", model, tensors=tensors)
    with pytest.raises(error, match=f"ffn_up.*{message}"):
        write(source, tmp_path / "b", F16)


def test_tensors_of_a_wrong_shape_are_named(tmp_path: Path) -> None:
    model = Llama(vocab=SIZE)
    tensors = model.make_tensors()
    name = "model.layers.1.self_attn.v_proj.weight"
    tensors[name] = tensors[name][:-1]
    source = put(tmp_path / "a", model, tensors=tensors)
    with pytest.raises(ThriftyError, match=r"v_proj.*\(15, 32\).*settings imply \(16, 32\)"):
        write(source, tmp_path / "b")
