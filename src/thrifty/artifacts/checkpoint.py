"""A checkpoint as named float arrays and one set of facts, whichever file it lies in.

Tensors go by the names that transformers gives them; GGUF's names and its order of rotary
dimensions are translated here. Whoever reads weights (conversion today, compression next) reads
them through this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.inspect import find_safetensors, read_json
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.errors import FormatRefused, IntegrityError

FloatArray = npt.NDArray[np.float32]

DECODERS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Decoder architectures that are read, by the name in `config.json`; the value is GGUF's name."""
GGUF_DECODERS = frozenset(DECODERS.values())
ENCODERS = frozenset({"BertModel"})
"""Encoder architectures that are read."""


class Tensors(Protocol):
    """Named arrays, read on demand."""

    def __contains__(self, name: str) -> bool: ...

    def read_tensor(self, name: str) -> FloatArray:
        """One tensor as float32."""
        ...


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched. Llama 3.1's rule, or a plain factor."""

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class DecoderShape:
    """The facts of a Llama-like decoder."""

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
        """How many numbers the KV cache holds for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class EncoderShape:
    """The facts of a BERT-like encoder, and how its tokens become one embedding."""

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    pooling: str = "mean"
    normalize: bool = True
    pad_token_id: int = 0


@dataclass(frozen=True)
class DecoderCheckpoint:
    """A decoder's shape and weights."""

    shape: DecoderShape
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderCheckpoint:
    """An encoder's shape and weights."""

    shape: EncoderShape
    tensors: Tensors


def load_decoder(folder: Path) -> DecoderCheckpoint:
    """The decoder in `folder`, from GGUF or safetensors.

    Raises `FormatRefused` for an architecture or a setting that is not read.
    """
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return _load_gguf_decoder(GgufFile(ggufs[0]))
    config = read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    shape = _read_decoder_shape(config, generation)
    tensors = _Prefixed(SafetensorsFiles(find_safetensors(folder)), ("", "model."))
    return DecoderCheckpoint(shape, tensors, config)


def load_encoder(folder: Path) -> EncoderCheckpoint:
    """The encoder in `folder`. Raises `FormatRefused` for what is not read."""
    config = read_json(folder / "config.json")
    architecture = (config.get("architectures") or [""])[0]
    if architecture not in ENCODERS:
        raise FormatRefused(
            f"encoders of the architecture {architecture!r} are not read here; "
            f"these are: {', '.join(sorted(ENCODERS))}"
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise FormatRefused(f"the activation {config['hidden_act']!r} is not read; gelu is")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise FormatRefused("only absolute position embeddings are read")
    pooling, normalize = _read_pooling(folder)
    shape = EncoderShape(
        architecture=architecture,
        layers=int(config["num_hidden_layers"]),
        hidden_size=int(config["hidden_size"]),
        heads=int(config["num_attention_heads"]),
        vocab_size=int(config["vocab_size"]),
        context_length=int(config["max_position_embeddings"]),
        norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
        pooling=pooling,
        normalize=normalize,
        pad_token_id=int(config.get("pad_token_id") or 0),
    )
    tensors = _Prefixed(SafetensorsFiles(find_safetensors(folder)), ("", "bert."))
    return EncoderCheckpoint(shape, tensors)


def _read_pooling(folder: Path) -> tuple[str, bool]:
    """How sentence-transformers would pool, from its `modules.json`; mean and normalized without."""
    modules_path = folder / "modules.json"
    if not modules_path.exists():
        return "mean", True
    import json

    modules = json.loads(modules_path.read_text())
    kinds = {str(module["type"]).rpartition(".")[2]: module["path"] for module in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise FormatRefused(f"the sentence-transformers module {min(unknown)!r} is not read")
    pooling = read_json(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else {}
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) > 1 or (modes and modes[0] not in known):
        raise FormatRefused(f"the pooling {', '.join(modes)} is not read; mean and cls are")
    return known[modes[0]] if modes else "mean", "Normalize" in kinds


def _read_decoder_shape(config: dict[str, Any], generation: dict[str, Any]) -> DecoderShape:
    architecture = (config.get("architectures") or [config.get("model_type", "")])[0]
    if architecture not in DECODERS:
        raise FormatRefused(
            f"decoders of the architecture {architecture!r} are not read here; these are: "
            f"{', '.join(DECODERS)}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise FormatRefused(f"the activation {config['hidden_act']!r} is not read; silu is")
    heads = int(config["num_attention_heads"])
    rope = config.get("rope_parameters") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    context = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True):
        # Within the window, sliding and full attention are the same thing.
        context = min(context, int(window))
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return DecoderShape(
        architecture=architecture,
        layers=int(config["num_hidden_layers"]),
        hidden_size=int(config["hidden_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        vocab_size=int(config["vocab_size"]),
        context_length=context,
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=_read_rope_scaling(config.get("rope_scaling") or rope),
        eos_token_ids=_as_ids(eos),
        bos_token_id=config.get("bos_token_id"),
        pad_token_id=config.get("pad_token_id"),
    )


def _as_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _read_rope_scaling(scaling: dict[str, Any]) -> RopeScaling | None:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(scaling["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(scaling["factor"]),
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    raise FormatRefused(f"the rotary scaling {kind!r} is not read; linear and llama3 are")


class _Prefixed:
    """Tensors whose names may carry one of several prefixes in the file."""

    def __init__(self, files: SafetensorsFiles, prefixes: tuple[str, ...]) -> None:
        self._files = files
        self._prefixes = prefixes

    def _find(self, name: str) -> str | None:
        for prefix in self._prefixes:
            if prefix + name in self._files:
                return prefix + name
        return None

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def read_tensor(self, name: str) -> FloatArray:
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
ROPE_FACTORS = "rope_freqs.weight"
"""In GGUF, Llama 3.1's rotary scaling comes as a tensor of divisors."""


class _GgufTensors:
    """A GGUF's tensors under their transformers names."""

    def __init__(self, file: GgufFile, heads: int, kv_heads: int) -> None:
        self._file = file
        self._heads = {"attn_q": heads, "attn_k": kv_heads}
        self._interleaved = file.architecture == "llama"

    def __contains__(self, name: str) -> bool:
        return self._translate(name) in self._file.tensors

    def read_tensor(self, name: str) -> FloatArray:
        translated = self._translate(name)
        if translated not in self._file.tensors:
            raise IntegrityError(f"{self._file.path} has no tensor {translated!r}; fetch it again")
        values = self._file.read_tensor(translated)
        kind = translated.split(".")[-2]
        if self._interleaved and kind in self._heads:
            return _uninterleave(values, self._heads[kind])
        return values

    def _translate(self, name: str) -> str:
        if name in _GGUF_TOP or not name.startswith("model.layers."):
            return _GGUF_TOP.get(name, name)
        _, _, index, rest = name.split(".", 3)
        module, _, suffix = rest.rpartition(".")
        return f"blk.{index}.{_GGUF_LAYER[module]}.{suffix}"


def _uninterleave(values: FloatArray, heads: int) -> FloatArray:
    """Undo llama.cpp's order of rotary dimensions (pairs side by side) for `llama` models.

    transformers keeps the first of each pair in the first half of a head, the second in the other.
    """
    rows = values.shape[0] // heads
    paired = values.reshape(heads, rows // 2, 2, *values.shape[1:])
    return paired.swapaxes(1, 2).reshape(values.shape)


def _load_gguf_decoder(file: GgufFile) -> DecoderCheckpoint:
    if file.architecture not in GGUF_DECODERS:
        raise FormatRefused(
            f"GGUF files of the architecture {file.architecture!r} are not read here; these are: "
            f"{', '.join(sorted(GGUF_DECODERS))}"
        )
    heads = int(file.get("attention.head_count"))
    hidden = int(file.get("embedding_length"))
    kv_heads = int(file.get("attention.head_count_kv") or heads)
    scaling_kind = file.get("rope.scaling.type", "none")
    if scaling_kind not in ("none", "linear"):
        raise FormatRefused(f"the rotary scaling {scaling_kind!r} is not read; linear is")
    factor = float(file.get("rope.scaling.factor", 1.0))
    metadata = file.metadata
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    shape = DecoderShape(
        architecture=file.architecture,
        layers=int(file.get("block_count")),
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=int(file.get("attention.key_length") or hidden // heads),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context_length=int(file.get("context_length", 2048)),
        norm_epsilon=float(file.get("attention.layer_norm_rms_epsilon")),
        rope_theta=float(file.get("rope.freq_base", 10_000.0)),
        rope_scaling=RopeScaling("linear", factor) if scaling_kind == "linear" else None,
        eos_token_ids=() if eos is None else (int(eos),),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )
    return DecoderCheckpoint(shape, _GgufTensors(file, heads, kv_heads))
