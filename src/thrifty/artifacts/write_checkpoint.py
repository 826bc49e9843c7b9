"""Write a decoder as a plain checkpoint, which every tool for transformers models can load.

Weights are written layer by layer, so that the model may be larger than memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thrifty.artifacts.checkpoint import (
    LAYER_MATRICES,
    ROPE_FACTORS,
    DecoderCheckpoint,
    DecoderShape,
    FloatArray,
)
from thrifty.artifacts.inspect import SAFETENSORS_INDEX
from thrifty.artifacts.safetensors_file import write_safetensors
from thrifty.errors import FormatRefused

_CLASSES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "LlamaForCausalLM": ("LlamaForCausalLM", "llama"),
    "MistralForCausalLM": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "Qwen2ForCausalLM": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "Qwen3ForCausalLM": ("Qwen3ForCausalLM", "qwen3"),
}
"""The class and model type in transformers, by the architecture of a shape."""
_LAYER_VECTORS = ("input_layernorm.weight", "post_attention_layernorm.weight",
                  "self_attn.q_norm.weight", "self_attn.k_norm.weight")  # fmt: skip
SHARD_BYTES = 2_000_000_000


def write_decoder(checkpoint: DecoderCheckpoint, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and the weights in 16 bits to `folder`."""
    if ROPE_FACTORS in checkpoint.tensors:
        raise FormatRefused(
            "the GGUF stores its rotary scaling as a tensor, which a plain checkpoint cannot "
            "express; use the model's safetensors"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []
    shard: dict[str, FloatArray] = {}
    inner = 0
    for name, values in _read_all(checkpoint):
        if name.endswith("mlp.gate_proj.weight"):
            inner = len(values)
        shard[name] = values
        if sum(array.size for array in shard.values()) * 2 >= SHARD_BYTES:
            files.append(_write_shard(folder, shard, len(files)))
            shard = {}
    if shard:
        files.append(_write_shard(folder, shard, len(files)))
    _name_shards(folder, files)
    shape = checkpoint.shape
    config = make_config(shape, inner, tied="lm_head.weight" not in checkpoint.tensors)
    _write_json(folder / "config.json", config)
    if shape.eos_token_ids:
        _write_json(folder / "generation_config.json", {"eos_token_id": list(shape.eos_token_ids)})


def make_config(shape: DecoderShape, inner: int, *, tied: bool) -> dict[str, Any]:
    """The transformers config of a decoder with `inner` neurons in each MLP."""
    architecture, kind = _CLASSES[shape.architecture]
    rope: dict[str, Any] = {"rope_theta": shape.rope_theta, "rope_type": "default"}
    if shape.rope_scaling is not None:
        scaling = dataclasses.asdict(shape.rope_scaling)
        rope |= {"rope_type": scaling.pop("kind"), "factor": scaling.pop("factor")}
        if rope["rope_type"] == "llama3":
            rope["original_max_position_embeddings"] = scaling.pop("original_context")
            rope |= scaling
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": kind,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "rope_parameters": rope,
        # Where transformers before 5, and what builds on it, look for the scaling.
        "rope_scaling": None
        if shape.rope_scaling is None
        else {key: value for key, value in rope.items() if key != "rope_theta"},
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": list(shape.eos_token_ids) or None,
        "pad_token_id": shape.pad_token_id,
    }
    if kind == "mistral":
        config["sliding_window"] = None
    return {
        key: value for key, value in config.items() if value is not None or key == "sliding_window"
    }


def _read_all(checkpoint: DecoderCheckpoint) -> Iterator[tuple[str, FloatArray]]:
    tensors = checkpoint.tensors
    yield "model.embed_tokens.weight", tensors.read_tensor("model.embed_tokens.weight")
    for layer in range(checkpoint.shape.layers):
        names = [f"{matrix}.{kind}" for matrix in LAYER_MATRICES for kind in ("weight", "bias")]
        for name in (*names, *_LAYER_VECTORS):
            full = f"model.layers.{layer}.{name}"
            if full in tensors:
                yield full, tensors.read_tensor(full)
    for name in ("model.norm.weight", "lm_head.weight"):
        if name in tensors:
            yield name, tensors.read_tensor(name)


def _write_shard(folder: Path, shard: dict[str, FloatArray], index: int) -> dict[str, Any]:
    path = folder / f"shard-{index}.part"
    write_safetensors(path, shard)
    return {"path": path, "names": list(shard), "bytes": 2 * sum(a.size for a in shard.values())}


def _name_shards(folder: Path, files: list[dict[str, Any]]) -> None:
    """Give the shards the names that transformers expects, and write an index if there are
    several.
    """
    if len(files) == 1:
        files[0]["path"].rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for index, file in enumerate(files, 1):
        name = f"model-{index:05}-of-{len(files):05}.safetensors"
        file["path"].rename(folder / name)
        places |= dict.fromkeys(file["names"], name)
    total = sum(file["bytes"] for file in files)
    index_file = folder / SAFETENSORS_INDEX
    _write_json(index_file, {"metadata": {"total_size": total}, "weight_map": places})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
