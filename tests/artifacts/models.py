"""Small models for tests: random llamas as safetensors and as GGUF, and a vocabulary."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True)
class Llama:
    """The shape of a small decoder. `kind` is GGUF's name for the architecture."""

    kind: str = "llama"
    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    inner: int = 48
    vocab: int = 40
    context: int = 64
    theta: float = 10_000.0
    tied: bool = True
    biases: bool = False
    seed: int = 0

    def make_tensors(self) -> dict[str, FloatArray]:
        """Random weights with transformers' names."""
        generator = np.random.default_rng(self.seed)

        def draw(*shape: int, around: float = 0.0, scale: float = 0.3) -> FloatArray:
            return (around + scale * generator.standard_normal(shape)).astype(np.float32)

        tensors = {"model.embed_tokens.weight": draw(self.vocab, self.hidden, scale=1.0)}
        rows = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            attention = f"{prefix}self_attn."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}{norm}.weight"] = draw(self.hidden, around=1.0, scale=0.1)
            for letter, count in rows.items():
                name = f"{attention}{letter}_proj"
                tensors[f"{name}.weight"] = draw(count * self.head_dim, self.hidden)
                if self.kind == "qwen2" or self.biases:
                    tensors[f"{name}.bias"] = draw(count * self.head_dim)
            tensors[f"{attention}o_proj.weight"] = draw(self.hidden, self.heads * self.head_dim)
            if self.kind == "qwen3":
                for letter in "qk":
                    norm = f"{attention}{letter}_norm.weight"
                    tensors[norm] = draw(self.head_dim, around=1.0, scale=0.2)
            for name, shape in (
                ("gate", (self.inner, self.hidden)),
                ("up", (self.inner, self.hidden)),
                ("down", (self.hidden, self.inner)),
            ):
                tensors[f"{prefix}mlp.{name}_proj.weight"] = draw(*shape)
        tensors["model.norm.weight"] = draw(self.hidden, around=1.0, scale=0.1)
        if not self.tied:
            tensors["lm_head.weight"] = draw(self.vocab, self.hidden)
        return tensors

    def make_config(self, **changes: Any) -> dict[str, Any]:
        """The `config.json` that transformers would write; a change to None removes a key."""
        config = {
            "architectures": [CLASSES[self.kind]],
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "head_dim": self.head_dim,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "model_type": self.kind,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.theta,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "float32",
            "vocab_size": self.vocab,
            "eos_token_id": 2,
            "bos_token_id": 1,
            **changes,
        }
        return {key: value for key, value in config.items() if value is not None}

    def write_safetensors(
        self, folder: Path, *, tensors: dict[str, FloatArray] | None = None, **changes: Any
    ) -> Path:
        """Write the model as a transformers folder, optionally with other `tensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / "model.safetensors", tensors or self.make_tensors())
        (folder / "config.json").write_text(json.dumps(self.make_config(**changes)))
        return folder

    def write_gguf(
        self,
        path: Path,
        *,
        quantization: Any = None,
        extra: Mapping[str, Any] | None = None,
        extra_tensors: Mapping[str, FloatArray] | None = None,
        leave_out: tuple[str, ...] = (),
    ) -> Path:
        """Write the model as llama.cpp would. `extra` is metadata, without the architecture."""
        import gguf

        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, self.kind)
        values: dict[str, Any] = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.hidden,
            "feed_forward_length": self.inner,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": self.theta,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            **(extra or {}),
        }
        for key, value in values.items():
            if key not in leave_out and value is not None:
                prefix = "" if key.startswith(("tokenizer.", "general.")) else f"{self.kind}."
                add_value(writer, prefix + key, value)
        for name, tensor in self.make_tensors().items():
            data = tensor
            for letter, count in (("q", self.heads), ("k", self.kv_heads)):
                if self.kind == "llama" and f"self_attn.{letter}_proj" in name:
                    data = interleave(tensor, count)
            translated = gguf_name(name)
            if translated in leave_out:
                continue
            if quantization is not None and data.ndim == 2 and data.shape[1] % 32 == 0:
                writer.add_tensor(
                    translated, gguf.quants.quantize(data, quantization), raw_dtype=quantization
                )
            else:
                writer.add_tensor(translated, data)
        for name, tensor in (extra_tensors or {}).items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def interleave(tensor: FloatArray, heads: int) -> FloatArray:
    """llama.cpp's `permute`: pairs of rotary dimensions side by side, from its converter."""
    return (
        tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        .swapaxes(1, 2)
        .reshape(tensor.shape)
    )


def gguf_name(name: str) -> str:
    """GGUF's name for a tensor in transformers."""
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[module]}.{suffix}"


def add_value(writer: Any, key: str, value: Any) -> None:
    """Add one metadata value with the type that llama.cpp uses for it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def encode_safetensors(
    tensors: Mapping[str, npt.NDArray[Any]],
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A safetensors file's bytes. `dtypes` may name `BF16` for arrays of float32."""
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
             "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}  # fmt: skip
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    body = bytearray()
    for name, tensor in tensors.items():
        dtype = (dtypes or {}).get(name) or names[tensor.dtype.name]
        if dtype == "BF16":
            data = (tensor.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            data = tensor.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(body)


def write_safetensors(
    path: Path, tensors: Mapping[str, npt.NDArray[Any]], dtypes: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file."""
    path.write_bytes(encode_safetensors(tensors, dtypes))
    return path


def write_model(folder: Path, filling: int = 0, size: int = 64) -> Path:
    """Write a checkpoint folder that can be stored; all of its weights have the same value."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"w": np.full(size, filling, dtype=np.uint8)}
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder
