"""A checkpoint has the same tensors and shape in every file format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from tests.artifacts.models import Llama, write_safetensors
from thrifty.artifacts.checkpoint import ROPE_FACTORS, DecoderShape, RopeScaling, load_decoder
from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.artifacts.inspect import inspect_model
from thrifty.errors import FormatRefused, IntegrityError

LLAMAS = {
    "llama": Llama(),
    "llama-untied": Llama(tied=False),
    "llama-one-kv-head": Llama(kv_heads=1),
    "llama-full-heads": Llama(kv_heads=4),
    "llama-biases": Llama(biases=True),
    "llama-wide-heads": Llama(head_dim=16),
    "qwen2": Llama(kind="qwen2"),
    "qwen3": Llama(kind="qwen3", head_dim=16, tied=False),
}


@pytest.mark.parametrize("name", LLAMAS)
def test_gguf_and_safetensors_give_equal_tensors(tmp_path: Path, name: str) -> None:
    llama = LLAMAS[name]
    llama.write_gguf(tmp_path / "gguf" / "model.gguf")
    one = load_decoder(tmp_path / "gguf").tensors
    two = load_decoder(llama.write_safetensors(tmp_path / "safetensors")).tensors
    tensors = llama.make_tensors()
    for tensor_name, expected in tensors.items():
        assert tensor_name in one
        assert tensor_name in two
        np.testing.assert_array_equal(one.read_tensor(tensor_name), expected, tensor_name)
        np.testing.assert_array_equal(two.read_tensor(tensor_name), expected, tensor_name)
    for tensors_read in (one, two):
        assert ("lm_head.weight" in tensors_read) is (not llama.tied)
        bias = "model.layers.0.self_attn.q_proj.bias"
        assert (bias in tensors_read) is (bias in tensors)
        norm = "model.layers.0.self_attn.q_norm.weight"
        assert (norm in tensors_read) is (norm in tensors)


@pytest.mark.parametrize("name", LLAMAS)
def test_gguf_and_safetensors_give_equal_facts(tmp_path: Path, name: str) -> None:
    llama = LLAMAS[name]
    llama.write_gguf(tmp_path / "gguf" / "model.gguf")
    llama.write_safetensors(tmp_path / "safetensors")
    one = load_decoder(tmp_path / "gguf").shape
    two = load_decoder(tmp_path / "safetensors").shape
    assert two == DecoderShape(
        architecture=two.architecture, layers=2, hidden_size=32, heads=llama.heads,
        kv_heads=llama.kv_heads, head_dim=llama.head_dim, vocab_size=40, context_length=64,
        norm_epsilon=1e-5, rope_theta=10_000.0, eos_token_ids=(2,), bos_token_id=1,
    )  # fmt: skip
    assert one.architecture == llama.kind
    assert one.norm_epsilon == pytest.approx(two.norm_epsilon)
    assert replace(one, architecture="", norm_epsilon=0) == replace(
        two, architecture="", norm_epsilon=0
    )
    assert one.kv_values_per_token == 2 * 2 * llama.kv_heads * llama.head_dim


def test_quantized_gguf_is_close_to_the_floats(tmp_path: Path) -> None:
    llama = Llama(hidden=64, inner=64, head_dim=16)
    llama.write_gguf(tmp_path / "model.gguf", quantization=GGMLQuantizationType.Q8_0)
    tensors = load_decoder(tmp_path).tensors
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = llama.make_tensors()[name]
    error = np.abs(tensors.read_tensor(name) - expected)
    assert 0 < error.max() <= np.abs(expected).max() / 127


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_may_lack_the_prefix(tmp_path: Path, prefix: str) -> None:
    llama = Llama()
    tensors = {
        name.removeprefix("model.") if not prefix else name: tensor
        for name, tensor in llama.make_tensors().items()
    }
    llama.write_safetensors(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    found = load_decoder(tmp_path).tensors
    assert "norm.weight" in found
    np.testing.assert_array_equal(
        found.read_tensor("norm.weight"), llama.make_tensors()["model.norm.weight"]
    )


def test_tied_head_is_the_embedding_whatever_else_is_stored(tmp_path: Path) -> None:
    llama = Llama(tied=False)
    llama.write_safetensors(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_decoder(tmp_path).tensors


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    llama = Llama(tied=False)
    llama.write_safetensors(tmp_path / "a")
    tensors = llama.make_tensors()
    del tensors["lm_head.weight"]
    write_safetensors(tmp_path / "a" / "model.safetensors", tensors)
    with pytest.raises(IntegrityError, match=r"no tensor 'lm_head.weight'; fetch it again"):
        load_decoder(tmp_path / "a")
    with pytest.raises(IntegrityError, match=r"no tensor 'model.x'; fetch it again"):
        load_decoder(Llama().write_safetensors(tmp_path / "b")).tensors.read_tensor("model.x")
    llama.write_gguf(tmp_path / "c" / "m.gguf", leave_out=("blk.1.attn_q.weight",))
    found = load_decoder(tmp_path / "c").tensors
    with pytest.raises(IntegrityError, match=r"m.gguf has no tensor 'blk.1.attn_q.weight'"):
        found.read_tensor("model.layers.1.self_attn.q_proj.weight")
    llama.write_gguf(tmp_path / "d" / "m.gguf", leave_out=("token_embd.weight",))
    with pytest.raises(IntegrityError, match=r"m.gguf has no tensor 'token_embd.weight'"):
        load_decoder(tmp_path / "d")


@pytest.mark.parametrize(
    "name",
    ["self_attn.sinks", "self_attn.q_proj.lora_A.weight", "mlp.up_proj.weight_scale",
     "input_layernorm.bias", "post_feedforward_layernorm.weight"],
)  # fmt: skip
def test_tensors_that_would_be_left_out_are_refused(tmp_path: Path, name: str) -> None:
    more = {f"model.layers.1.{name}": np.ones(4, np.float32)}
    llama = Llama()
    llama.write_safetensors(tmp_path, tensors={**llama.make_tensors(), **more})
    with pytest.raises(FormatRefused, match=f"'model.layers.1.{name}', which models of the kind"):
        load_decoder(tmp_path)


def test_experts_of_a_gguf_are_refused(tmp_path: Path) -> None:
    more = {"blk.0.ffn_gate_inp.weight": np.ones((4, 32), np.float32)}
    Llama().write_gguf(tmp_path / "m.gguf", extra_tensors=more)
    with pytest.raises(FormatRefused, match=r"'blk.0.ffn_gate_inp.weight', which models of the"):
        load_decoder(tmp_path)


def test_tensors_that_are_computed_anew_may_be_there(tmp_path: Path) -> None:
    llama = Llama()
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    llama.write_safetensors(tmp_path, tensors={**llama.make_tensors(), **more})
    assert load_decoder(tmp_path).shape.layers == 2


def test_a_missing_norm_of_heads_is_named(tmp_path: Path) -> None:
    llama = Llama(kind="qwen3")
    name = "model.layers.1.self_attn.k_norm.weight"
    tensors = {key: values for key, values in llama.make_tensors().items() if key != name}
    llama.write_safetensors(tmp_path / "a", tensors=tensors)
    llama.write_gguf(tmp_path / "b" / "m.gguf", leave_out=("blk.1.attn_k_norm.weight",))
    for folder in ("a", "b"):
        with pytest.raises(IntegrityError, match=f"no tensor '{name}'"):
            load_decoder(tmp_path / folder)


def write_shards(folder: Path, llama: Llama) -> None:
    llama.write_safetensors(folder)
    (folder / "model.safetensors").unlink()
    tensors, places = llama.make_tensors(), {}
    for part in range(2):
        name = f"model-{part + 1:05}-of-00002.safetensors"
        shard = dict(list(tensors.items())[part::2])
        write_safetensors(folder / name, shard)
        places |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_files_that_the_index_does_not_name_are_no_part(tmp_path: Path) -> None:
    """A checkpoint that was saved again in fewer parts leaves some of the old ones behind."""
    write_shards(tmp_path, Llama())
    old = Llama(seed=1).make_tensors()
    write_safetensors(tmp_path / "model-00003-of-00003.safetensors", old)
    found = load_decoder(tmp_path).tensors
    for name, expected in Llama().make_tensors().items():
        np.testing.assert_allclose(found.read_tensor(name), expected, atol=2e-3)
    count = sum(values.size for values in old.values())
    assert inspect_model(tmp_path).parameters == count
    # A whole file goes first, as in transformers.
    write_safetensors(tmp_path / "model.safetensors", old)
    name = "model.norm.weight"
    found = load_decoder(tmp_path).tensors
    np.testing.assert_allclose(found.read_tensor(name), old[name], atol=2e-3)


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, Llama())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"lacks parts of a model: model-00002-of-00002"):
        inspect_model(tmp_path)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b"}}']
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    write_shards(tmp_path, Llama())
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"index.json is damaged"):
        inspect_model(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    llama = Llama()
    llama.write_safetensors(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "b.safetensors", llama.make_tensors())
    with pytest.raises(IntegrityError, match=r"a.safetensors both hold the tensor"):
        load_decoder(tmp_path)


# settings


def load(folder: Path, generation: Any = None, **changes: Any) -> DecoderShape:
    """The shape that results from a `config.json` with these changes."""
    Llama().write_safetensors(folder, **changes)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_decoder(folder).shape


LLAMA3_SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 32}  # fmt: skip
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"rope_type": "default"}}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeScaling("linear", 2.0)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, RopeScaling("linear", 2.5)),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}}, LLAMA3),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0, **LLAMA3_SCALING}}, LLAMA3),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, None),
        ({"rope_parameters": {"rope_theta": 7.0}}, None),
    ],
)
def test_rotary_scaling_is_read(tmp_path: Path, changes: Any, expected: Any) -> None:
    shape = load(tmp_path, **changes)
    assert shape.rope_scaling == expected
    assert shape.rope_theta == (7.0 if "rope_parameters" in changes else 10_000.0)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "su"])
def test_other_rotary_scalings_are_refused(tmp_path: Path, kind: str) -> None:
    message = rf"the rotary scaling '{kind}' is not supported; linear"
    with pytest.raises(FormatRefused, match=message):
        load(tmp_path / "a", rope_scaling={"rope_type": kind, "factor": 2.0})
    if kind != "dynamic":
        Llama().write_gguf(tmp_path / "b" / "m.gguf", extra={"rope.scaling.type": kind})
        with pytest.raises(FormatRefused, match=message):
            load_decoder(tmp_path / "b")


def test_rotary_settings_may_all_be_under_the_old_name(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}
    shape = load(tmp_path, rope_scaling=rope)
    assert (shape.rope_theta, shape.rope_scaling) == (7.0, RopeScaling("linear", 2.0))


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rotary_settings_that_would_be_passed_over_are_refused(tmp_path: Path, key: str) -> None:
    layers = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}
    with pytest.raises(FormatRefused, match="differ between layers"):
        load(tmp_path, **{key: layers})
    with pytest.raises(FormatRefused, match="does not say how; set `rope_type`"):
        load(tmp_path, **{key: {"factor": 2.0}})


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
    ],
)
def test_linear_scaling_of_a_gguf_is_read(tmp_path: Path, extra: Any, expected: Any) -> None:
    Llama().write_gguf(tmp_path / "m.gguf", extra=extra)
    assert load_decoder(tmp_path).shape.rope_scaling == expected


def test_a_gguf_of_experts_is_refused(tmp_path: Path) -> None:
    Llama().write_gguf(tmp_path / "m.gguf", extra={"expert_count": 8})
    with pytest.raises(
        FormatRefused, match="a mixture of experts, which only the engine 'llamacpp'"
    ):
        load_decoder(tmp_path)


def test_rotary_factors_of_a_gguf_are_a_tensor(tmp_path: Path) -> None:
    factors = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    Llama().write_gguf(tmp_path / "m.gguf", extra_tensors={ROPE_FACTORS: factors})
    tensors = load_decoder(tmp_path).tensors
    assert ROPE_FACTORS in tensors
    np.testing.assert_array_equal(tensors.read_tensor(ROPE_FACTORS), factors)


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, 64),
        ({"sliding_window": 16}, 16),
        ({"sliding_window": 16, "use_sliding_window": True}, 16),
        ({"sliding_window": 16, "use_sliding_window": False}, 64),
        ({"sliding_window": 4096}, 64),
    ],
)
def test_sliding_window_bounds_the_context(tmp_path: Path, changes: Any, context: int) -> None:
    assert load(tmp_path, **changes).context_length == context


def test_qwen_slides_only_where_it_says_so(tmp_path: Path) -> None:
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16}
    assert load(tmp_path / "a", **qwen).context_length == 64
    assert load(tmp_path / "b", **qwen, use_sliding_window=True).context_length == 16


def test_sliding_window_of_a_gguf_bounds_the_context(tmp_path: Path) -> None:
    Llama().write_gguf(tmp_path / "m.gguf", extra={"attention.sliding_window": 16})
    assert load_decoder(tmp_path).shape.context_length == 16


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 3], None, (2, 3)),
        (2, {"eos_token_id": [5, 6]}, (5, 6, 2)),
        (2, {"eos_token_id": [5, 2]}, (5, 2)),
        (2, {"eos_token_id": 0}, (0, 2)),
        (2, {"eos_token_id": None}, (2,)),
        (2, {}, (2,)),
        (None, None, ()),
    ],
)
def test_ends_of_sequence_are_those_of_both_files(
    tmp_path: Path, config: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    assert load(tmp_path, generation, eos_token_id=config).eos_token_ids == expected


def test_end_of_turn_of_a_gguf_ends_a_sequence_too(tmp_path: Path) -> None:
    Llama().write_gguf(tmp_path / "a" / "m.gguf", extra={"tokenizer.ggml.eot_token_id": 9})
    assert load_decoder(tmp_path / "a").shape.eos_token_ids == (2, 9)
    Llama().write_gguf(tmp_path / "b" / "m.gguf", extra={"tokenizer.ggml.eot_token_id": 2})
    assert load_decoder(tmp_path / "b").shape.eos_token_ids == (2,)


def test_left_out_settings_are_those_of_transformers(tmp_path: Path) -> None:
    shape = load(
        tmp_path, head_dim=None, num_key_value_heads=None, rms_norm_eps=None, rope_theta=None,
        hidden_act=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert (shape.head_dim, shape.kv_heads, shape.norm_epsilon) == (8, 4, 1e-6)
    assert (shape.rope_theta, shape.bos_token_id, shape.pad_token_id) == (10_000.0, None, None)


def test_a_padding_token_may_be_none(tmp_path: Path) -> None:
    assert load(tmp_path / "a", pad_token_id=-1).pad_token_id is None
    extra = {"tokenizer.ggml.padding_token_id": 2**32 - 1}
    Llama().write_gguf(tmp_path / "b" / "m.gguf", extra=extra)
    assert load_decoder(tmp_path / "b").shape.pad_token_id is None


def test_settings_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = Llama().write_safetensors(tmp_path) / "config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert load_decoder(tmp_path).shape.layers == 2


def test_settings_that_are_null_count_as_left_out(tmp_path: Path) -> None:
    config = Llama().make_config()
    for key in ("head_dim", "num_key_value_heads", "rope_scaling", "sliding_window", "eos_token_id",
                "bos_token_id", "pad_token_id", "quantization_config"):  # fmt: skip
        config[key] = None
    Llama().write_safetensors(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = load_decoder(tmp_path).shape
    assert (shape.head_dim, shape.kv_heads, shape.eos_token_ids) == (8, 4, ())


# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["Gemma3ForCausalLM"]},
            r"'Gemma3ForCausalLM' is not supported; supported",
        ),
        ({"architectures": [], "model_type": None}, "architecture '' is not supported"),
        ({"hidden_act": "gelu"}, r"the activation 'gelu' is not supported; silu is"),
        (
            {"partial_rotary_factor": 0.5},
            r"partial rotary embeddings \(0.5 of a head\) are not supported",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, r"is already quantized \(gptq\)"),
        ({"quantization_config": {"bits": 4}}, r"is already quantized \(by an unknown method\)"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(FormatRefused, match=message):
        load(tmp_path, **changes)


def test_ggufs_that_would_be_read_wrongly_are_refused(tmp_path: Path) -> None:
    Llama(kind="phi3").write_gguf(tmp_path / "a" / "m.gguf")
    with pytest.raises(
        FormatRefused, match=r"'phi3' is not supported; supported are: llama, qwen2"
    ):
        load_decoder(tmp_path / "a")
    Llama().write_gguf(tmp_path / "b" / "m.gguf", extra={"rope.dimension_count": 4})
    with pytest.raises(FormatRefused, match="rotates 4 of 8 dimensions of a head"):
        load_decoder(tmp_path / "b")


NUMBERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
           "max_position_embeddings")  # fmt: skip


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [None, 0, -1, "8", 1.5, [8], True, {}, 10**30])
def test_unusable_numbers_are_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(IntegrityError, match=rf"config.json is damaged: '{key}' is"):
        load(tmp_path, **{key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 0},
        {"num_key_value_heads": "2"},
        {"head_dim": 7},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": -1e-5},
        {"rope_theta": 0},
        {"rope_scaling": "linear"},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING, "high_freq_factor": 1.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"sliding_window": "wide"},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [-1]},
        {"bos_token_id": 1.5},
    ],
)
def test_impossible_settings_are_named(tmp_path: Path, changes: Any) -> None:
    with pytest.raises(IntegrityError, match=r"config.json is damaged"):
        load(tmp_path, **changes)


@pytest.mark.parametrize(
    "extra",
    [{"attention.head_count": 0}, {"attention.head_count": None}, {"attention.head_count": [4, 4]},
     {"attention.head_count_kv": 3}, {"attention.key_length": 7}, {"block_count": "two"},
     {"embedding_length": None}, {"attention.layer_norm_rms_epsilon": None},
     {"rope.freq_base": 0.0}, {"tokenizer.ggml.eos_token_id": "</s>"}],
)  # fmt: skip
def test_impossible_settings_of_a_gguf_are_named(tmp_path: Path, extra: Any) -> None:
    Llama().write_gguf(tmp_path / "m.gguf", extra=extra)
    with pytest.raises(IntegrityError, match=r"m.gguf is damaged"):
        load_decoder(tmp_path)


def test_rows_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    """A damaged number of heads must not reorder weights."""
    Llama(heads=4, kv_heads=1, head_dim=6).write_gguf(
        tmp_path / "m.gguf", extra={"attention.head_count": 5, "attention.key_length": 6}
    )
    tensors = load_decoder(tmp_path).tensors
    with pytest.raises(IntegrityError, match="24 rows do not fit 5 heads"):
        tensors.read_tensor("model.layers.0.self_attn.q_proj.weight")


# encoders

BERT = {
    "architectures": ["BertModel"], "num_hidden_layers": 2, "hidden_size": 8,
    "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 32, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
}  # fmt: skip


def write_bert(folder: Path, modules: Any = None, pooling: Any = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"embeddings.word_embeddings.weight": np.ones((16, 8), np.float32)}
    write_safetensors(folder / "model.safetensors", tensors)
    config = {k: v for k, v in {**BERT, **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    if modules is not None:
        text = modules if isinstance(modules, str) else json.dumps(modules)
        (folder / "modules.json").write_text(text)
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def module(kind: str, path: str = "") -> dict[str, str]:
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


TRANSFORMER, POOLING = module("Transformer"), module("Pooling", "1_Pooling")
NORMALIZE = module("Normalize", "2_Normalize")


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        (None, None, ("mean", True)),
        ([TRANSFORMER, POOLING], {"pooling_mode_mean_tokens": True}, ("mean", False)),
        ([TRANSFORMER, POOLING, NORMALIZE], {"pooling_mode_mean_tokens": True}, ("mean", True)),
        (
            [TRANSFORMER, POOLING, NORMALIZE],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            ("cls", True),
        ),
        ([TRANSFORMER, NORMALIZE], None, ("mean", True)),
    ],
)
def test_pooling_is_that_of_sentence_transformers(
    tmp_path: Path, modules: Any, pooling: Any, expected: tuple[str, bool]
) -> None:
    shape = load_encoder(write_bert(tmp_path, modules, pooling)).shape
    assert (shape.pooling, shape.normalize) == expected
    assert (shape.layers, shape.hidden_size, shape.heads, shape.context_length) == (2, 8, 2, 32)


def test_encoder_names_may_carry_the_prefix(tmp_path: Path) -> None:
    write_bert(tmp_path)
    name = "embeddings.word_embeddings.weight"
    write_safetensors(tmp_path / "model.safetensors", {f"bert.{name}": np.ones(3, np.float32)})
    np.testing.assert_array_equal(load_encoder(tmp_path).tensors.read_tensor(name), np.ones(3))


@pytest.mark.parametrize(
    ("modules", "pooling", "changes", "message"),
    [
        (None, None, {"architectures": ["RobertaModel"]}, "'RobertaModel' is not supported"),
        (None, None, {"hidden_act": "relu"}, "the activation 'relu' is not supported; gelu is"),
        (None, None, {"position_embedding_type": "relative_key"}, "only absolute position"),
        ([TRANSFORMER, module("Dense", "2")], None, {}, "module 'Dense' is not supported"),
        (
            [POOLING],
            {"pooling_mode_max_tokens": True},
            {},
            "pooling_mode_max_tokens is not supported",
        ),
        (
            [POOLING],
            {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
            {},
            "pooling_mode_max_tokens, pooling_mode_mean_tokens is not supported; mean and cls are",
        ),
        ([POOLING], {"word_embedding_dimension": 8}, {}, "the pooling that the model names"),
    ],
)
def test_encoders_that_would_be_read_wrongly_are_refused(
    tmp_path: Path, modules: Any, pooling: Any, changes: Any, message: str
) -> None:
    with pytest.raises(FormatRefused, match=message):
        load_encoder(write_bert(tmp_path, modules, pooling, **changes))


@pytest.mark.parametrize("modules", ["", "{", "[1]", '[{"type": "x"}]', "7", '"text"'])
def test_damaged_modules_are_named(tmp_path: Path, modules: str) -> None:
    with pytest.raises(IntegrityError, match=r"modules.json is damaged"):
        load_encoder(write_bert(tmp_path, modules))


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": None}, {"hidden_size": "wide"}, {"num_attention_heads": 0},
     {"num_attention_heads": 3}, {"layer_norm_eps": "x"}, {"max_position_embeddings": -1}],
)  # fmt: skip
def test_impossible_encoder_settings_are_named(tmp_path: Path, changes: Any) -> None:
    with pytest.raises(IntegrityError, match=r"config.json is damaged"):
        load_encoder(write_bert(tmp_path, **changes))
