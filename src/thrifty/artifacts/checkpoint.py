"""A checkpoint as named float arrays and a description of its shape, for every file format.

Tensors have the names that transformers gives them. GGUF's names and its order of rotary dimensions
are translated here. Conversion and compression read weights through this module.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.inspect import (
    ADAPTER_CONFIG,
    find_safetensors,
    read_architecture,
    read_base,
    read_json,
)
from thrifty.artifacts.lora import Lora, read_lora
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.settings import read_integer, read_number, read_token_ids
from thrifty.artifacts.stop_tokens import read_ends, read_gguf_ends
from thrifty.errors import FormatRefused, IntegrityError

FloatArray = npt.NDArray[np.float32]

DECODERS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Supported decoder architectures, by the name in `config.json`; the value is GGUF's name."""
GGUF_DECODERS = frozenset(DECODERS.values())
LAYER_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                  "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
"""The matrices of a decoder's layer, after `model.layers.N.`."""

_HEAD = "lm_head.weight"


class Tensors(Protocol):
    """Named arrays, read on demand."""

    def __contains__(self, name: str) -> bool: ...

    def read_tensor(self, name: str) -> FloatArray:
        """One tensor as float32."""
        ...


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled: by Llama 3.1's rule (`llama3`) or a factor (`linear`)."""

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class DecoderShape:
    """The dimensions and constants of a Llama-like decoder."""

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    @property
    def kv_values_per_token(self) -> int:
        """How many numbers the KV cache stores for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class DecoderCheckpoint:
    """A decoder's shape and weights."""

    shape: DecoderShape
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)


def load_decoder(folder: Path) -> DecoderCheckpoint:
    """Load the decoder in `folder` from GGUF or safetensors; of an adapter, its base with the
    changes merged into the weights as they are read.

    Raises `FormatRefused` for an unsupported architecture or setting, and `IntegrityError` for a
    damaged file or an adapter without its base.
    """
    if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
        return _load_adapted(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) > 1:
        raise FormatRefused(
            f"{folder} has a GGUF in {len(ggufs)} parts, which only the engine 'llamacpp' serves; join "
            "them (llama-gguf-split --merge) for everything else"
        )
    if ggufs:
        return _load_gguf_decoder(GgufFile(ggufs[0]))
    path = folder / "config.json"
    config = read_json(path)
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    shape = _read_decoder_shape(config, generation, path)
    shape = _with_ends(shape, read_ends(folder))
    files = SafetensorsFiles(find_safetensors(folder))
    tied = config.get("tie_word_embeddings")
    tensors = Prefixed(files, ("", "model."), hidden={_HEAD} if tied else set())
    _check_layers(files.names, "layers.", _LAYER_TENSORS, shape, tensors, folder)
    if tied is False and _HEAD not in tensors:
        raise IntegrityError(f"the checkpoint has no tensor {_HEAD!r}; fetch it again")
    return DecoderCheckpoint(shape, tensors, config)


def _find_base(folder: Path) -> Path:
    """The folder of the base model of the adapter in `folder`, which lies beside it in the store.
    Raises `IntegrityError` where it does not.
    """
    base = read_base(folder)
    found = folder.parent / base.id
    if not found.is_dir():
        raise IntegrityError(
            f"the base model of this adapter, {base.name} ({base.id}), is not in the store any "
            "more; fetch it again (thrifty pull), or train the adapter anew"
        )
    return found


def _load_adapted(folder: Path) -> DecoderCheckpoint:
    lora, base = read_lora(folder), load_decoder(_find_base(folder))
    for name in lora.matrices:
        if f"{name}.weight" not in base.tensors:
            raise IntegrityError(
                f"{folder} is an adapter for another model: it changes {name}, which its base does "
                "not have"
            )
    return replace(base, tensors=_Adapted(base.tensors, lora))


@dataclass(frozen=True)
class _Adapted:
    """A base model's tensors with an adapter's changes."""

    base: Tensors
    lora: Lora

    def __contains__(self, name: str) -> bool:
        return name in self.base

    def read_tensor(self, name: str) -> FloatArray:
        values, matrix = self.base.read_tensor(name), name.removesuffix(".weight")
        if matrix not in self.lora.matrices:
            return values
        change = self.lora.read_change(matrix)
        if change.shape != values.shape:
            raise IntegrityError(
                f"the adapter is for another model: it changes {change.shape[0]} x {change.shape[1]} "
                f"weights of {matrix}, and its base has {' x '.join(map(str, values.shape))} there"
            )
        return values + change


def _read_decoder_shape(
    config: dict[str, Any], generation: dict[str, Any], path: Path
) -> DecoderShape:
    architecture = read_architecture(config)
    if architecture not in DECODERS:
        raise FormatRefused(
            f"the decoder architecture {architecture!r} is not supported; supported are: "
            f"{', '.join(DECODERS)}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise FormatRefused(f"the activation {config['hidden_act']!r} is not supported; silu is")
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise FormatRefused(
            f"the checkpoint is already quantized ({method or 'by an unknown method'}), which is "
            "not supported; use the model's 16-bit checkpoint or a GGUF"
        )
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    if not isinstance(rope, dict) or not isinstance(scaling, dict):
        raise IntegrityError(f"{path} is damaged: its rotary settings are not an object")
    if any(isinstance(value, dict) for value in (*rope.values(), *scaling.values())):
        raise FormatRefused("rotary settings that differ between layers are not supported")
    rotated = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if rotated != 1.0:
        raise FormatRefused(f"partial rotary embeddings ({rotated} of a head) are not supported")
    heads = read_integer(config, "num_attention_heads", path)
    hidden = read_integer(config, "hidden_size", path)
    context = read_integer(config, "max_position_embeddings", path)
    # Qwen's models name a window that they use only if they say so.
    slides = config.get("use_sliding_window", not DECODERS[architecture].startswith("qwen"))
    if config.get("sliding_window") and slides:
        # Within the window, sliding and full attention are identical.
        context = min(context, read_integer(config, "sliding_window", path))
    stated = read_number(config, "rope_theta", path, default=10_000.0)
    stated = read_number(scaling, "rope_theta", path, default=stated)
    eos = read_token_ids(generation, "eos_token_id", path.with_name("generation_config.json"))
    return _check_shape(
        DecoderShape(
            architecture=architecture,
            layers=read_integer(config, "num_hidden_layers", path),
            hidden_size=hidden,
            heads=heads,
            kv_heads=read_integer(config, "num_key_value_heads", path, default=heads),
            head_dim=read_integer(config, "head_dim", path, default=hidden // heads),
            vocab_size=read_integer(config, "vocab_size", path),
            context_length=context,
            norm_epsilon=read_number(config, "rms_norm_eps", path, default=1e-6),
            rope_theta=read_number(rope, "rope_theta", path, default=stated),
            rope_scaling=_read_rope_scaling(scaling, path),
            eos_token_ids=(*eos, *read_token_ids(config, "eos_token_id", path)),
            bos_token_id=_first(read_token_ids(config, "bos_token_id", path)),
            pad_token_id=_read_pad(config, path),
        ),
        path,
    )


def _check_shape(shape: DecoderShape, path: Path) -> DecoderShape:
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise IntegrityError(
            f"{path} is damaged: {shape.heads} heads with {shape.kv_heads} key-value heads, each "
            f"of {shape.head_dim} dimensions, are not possible"
        )
    return shape


def _with_ends(shape: DecoderShape, ends: tuple[int, ...]) -> DecoderShape:
    """`shape` with further stop tokens; each is there once, and exists."""
    known = dict.fromkeys((*shape.eos_token_ids, *ends))
    pad = shape.pad_token_id
    return replace(
        shape,
        eos_token_ids=tuple(i for i in known if i < shape.vocab_size),
        pad_token_id=pad if pad is not None and pad < shape.vocab_size else None,
    )


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _read_pad(config: dict[str, Any], path: Path) -> int | None:
    """The padding token; -1 says that there is none, as in the first Llamas."""
    if config.get("pad_token_id") == -1:
        return None
    return _first(read_token_ids(config, "pad_token_id", path))


def _read_rope_scaling(scaling: dict[str, Any], path: Path) -> RopeScaling | None:
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind is None and scaling.get("factor", 1.0) != 1.0:
        raise FormatRefused(
            f"{path} scales rotary frequencies by a factor and does not say how; set `rope_type` in it"
        )
    if kind in (None, "default"):
        return None
    if kind == "linear":
        return RopeScaling("linear", read_number(scaling, "factor", path))
    if kind == "llama3":
        low = read_number(scaling, "low_freq_factor", path)
        high = read_number(scaling, "high_freq_factor", path)
        if high <= low:
            raise IntegrityError(f"{path} is damaged: high_freq_factor {high} is not above {low}")
        return RopeScaling(
            "llama3",
            read_number(scaling, "factor", path),
            low,
            high,
            read_integer(scaling, "original_max_position_embeddings", path),
        )
    raise FormatRefused(f"the rotary scaling {kind!r} is not supported; linear and llama3 are")


class Prefixed:
    """Tensors whose names in the file may have one of several prefixes."""

    def __init__(
        self, files: SafetensorsFiles, prefixes: tuple[str, ...], hidden: Collection[str] = ()
    ) -> None:
        self._files = files
        self._prefixes = prefixes
        self._hidden = hidden

    def _find(self, name: str) -> str | None:
        if name in self._hidden:
            return None
        for prefix in self._prefixes:
            if prefix + name in self._files:
                return prefix + name
        return None

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def read_tensor(self, name: str) -> FloatArray:
        """One tensor as float32. Raises `IntegrityError` where there is none."""
        found = self._find(name)
        if found is None:
            raise IntegrityError(f"the checkpoint has no tensor {name!r}; fetch it again")
        return self._files.read_tensor(found)


_GGUF_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_GGUF_LAYER = {
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
_LAYER_TENSORS = frozenset(
    {f"{module}.weight" for module in _GGUF_LAYER}
    | {f"{module}.bias" for module in LAYER_MATRICES}
    # Computed anew, or of a cache in 8-bit floats.
    | {"self_attn.rotary_emb.inv_freq", "self_attn.k_scale", "self_attn.v_scale"}
)
"""The tensors that a layer may have, after `model.layers.N.`."""
_GGUF_LAYER_TENSORS = frozenset(
    {f"{module}.weight" for module in _GGUF_LAYER.values()}
    | {f"{_GGUF_LAYER[module]}.bias" for module in LAYER_MATRICES}
    | {"attn_rot_embd.weight"}
)
ROPE_FACTORS = "rope_freqs.weight"
"""GGUF stores Llama 3.1's rotary scaling as a tensor of divisors with this name."""


class _GgufTensors:
    """A GGUF's tensors by their transformers names."""

    def __init__(self, file: GgufFile, heads: int, kv_heads: int) -> None:
        self._file = file
        self._heads = {"attn_q": heads, "attn_k": kv_heads}
        self._interleaved = file.architecture == "llama"

    def __contains__(self, name: str) -> bool:
        try:
            return name_in_gguf(name) in self._file.tensors
        except KeyError:
            return False  # one that GGUF has no name for

    def read_tensor(self, name: str) -> FloatArray:
        translated = name_in_gguf(name)
        if translated not in self._file.tensors:
            raise IntegrityError(f"{self._file.path} has no tensor {translated!r}; fetch it again")
        values = self._file.read_tensor(translated)
        kind = translated.split(".")[-2]
        if self._interleaved and kind in self._heads:
            return _uninterleave(values, self._heads[kind])
        return values


def name_in_gguf(name: str) -> str:
    """GGUF's name for a tensor that transformers calls `name`."""
    if name in _GGUF_TOP or not name.startswith("model.layers."):
        return _GGUF_TOP.get(name, name)
    _, _, index, rest = name.split(".", 3)
    module, _, suffix = rest.rpartition(".")
    return f"blk.{index}.{_GGUF_LAYER[module]}.{suffix}"


def _check_layers(
    names: Iterable[str], before: str, known: Collection[str], shape: DecoderShape,
    tensors: Tensors, source: Path,
) -> None:  # fmt: skip
    """Raise `FormatRefused` for a tensor of a layer that would be left out, and `IntegrityError`
    where a layer lacks the norms of its kind: both give wrong answers without a sign.
    """
    for name in names:
        _, found, rest = name.partition(before)
        if found and rest.partition(".")[2] not in known:
            raise FormatRefused(
                f"{source} has the tensor {name!r}, which models of the kind {shape.architecture!r} "
                "do not have here; without it, answers would be wrong"
            )
    if DECODERS.get(shape.architecture, shape.architecture) == "qwen3":
        for layer in range(shape.layers):
            for norm in ("q_norm", "k_norm"):
                name = f"model.layers.{layer}.self_attn.{norm}.weight"
                if name not in tensors:
                    raise IntegrityError(f"the checkpoint has no tensor {name!r}; fetch it again")


def interleave(values: FloatArray, heads: int) -> FloatArray:
    """Change to llama.cpp's order of rotary dimensions for `llama` models: pairs side by side."""
    rows = values.shape[0] // heads
    halves = values.reshape(heads, 2, rows // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _uninterleave(values: FloatArray, heads: int) -> FloatArray:
    """Undo llama.cpp's order of rotary dimensions for `llama` models.

    llama.cpp stores the two dimensions of a pair side by side, transformers in the first and the
    second half of a head.
    """
    rows = values.shape[0] // heads
    if rows * heads != values.shape[0] or rows % 2:
        raise IntegrityError(f"{values.shape[0]} rows do not fit {heads} heads")
    paired = values.reshape(heads, rows // 2, 2, *values.shape[1:])
    return paired.swapaxes(1, 2).reshape(values.shape)


def _load_gguf_decoder(file: GgufFile) -> DecoderCheckpoint:
    if file.architecture not in GGUF_DECODERS:
        raise FormatRefused(
            f"the GGUF architecture {file.architecture!r} is not supported; supported are: "
            f"{', '.join(sorted(GGUF_DECODERS))}"
        )
    metadata, path, prefix = file.metadata, file.path, file.architecture
    if file.get("expert_count", 0):
        raise FormatRefused(
            f"{path} is a mixture of experts, which only the engine 'llamacpp' serves"
        )

    def integer(key: str, default: int | None = None) -> int:
        return read_integer(metadata, f"{prefix}.{key}", path, default)

    def number(key: str, default: float | None = None) -> float:
        return read_number(metadata, f"{prefix}.{key}", path, default)

    heads, hidden = integer("attention.head_count"), integer("embedding_length")
    kv_heads = integer("attention.head_count_kv", heads)
    head_dim = integer("attention.key_length", hidden // heads)
    rotated = integer("rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise FormatRefused(
            f"{path} rotates {rotated} of {head_dim} dimensions of a head, which is not supported"
        )
    # As llama.cpp: a factor without a type is linear, and older files have it under another name.
    scaling_kind = file.get("rope.scaling.type", "linear")
    if scaling_kind not in ("none", "linear"):
        raise FormatRefused(f"the rotary scaling {scaling_kind!r} is not supported; linear is")
    factor = number("rope.scaling.factor", number("rope.scale_linear", 1.0))
    scales = scaling_kind == "linear" and factor != 1.0
    context = integer("context_length", 2048)
    ends = [
        token
        for key in ("eos", "eot", "eom")
        for token in read_token_ids(metadata, f"tokenizer.ggml.{key}_token_id", path)
    ]
    shape = DecoderShape(
        architecture=prefix,
        layers=integer("block_count"),
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_count_rows(file, "token_embd.weight"),
        context_length=min(context, integer("attention.sliding_window", context)),
        norm_epsilon=number("attention.layer_norm_rms_epsilon"),
        rope_theta=number("rope.freq_base", 10_000.0),
        rope_scaling=RopeScaling("linear", factor) if scales else None,
        eos_token_ids=tuple(ends),
        bos_token_id=_first(read_token_ids(metadata, "tokenizer.ggml.bos_token_id", path)),
        pad_token_id=_first(read_token_ids(metadata, "tokenizer.ggml.padding_token_id", path)),
    )
    shape = _with_ends(_check_shape(shape, path), read_gguf_ends(metadata, path))
    tensors = _GgufTensors(file, heads, kv_heads)
    _check_layers(file.tensors, "blk.", _GGUF_LAYER_TENSORS, shape, tensors, path)
    return DecoderCheckpoint(shape, tensors)


def _count_rows(file: GgufFile, name: str) -> int:
    tensor = file.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise IntegrityError(f"{file.path} has no tensor {name!r}; fetch it again")
    return tensor.shape[0]
