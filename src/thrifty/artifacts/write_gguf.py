"""A decoder written as GGUF, for llama.cpp and what is built on it.

A GGUF that is written anew keeps its metadata and its tokenizer. A transformers checkpoint gets the
metadata that llama.cpp's converter would give it, and `llama` models its order of rotary dimensions.
Tensors are read, encoded and written one by one, so that memory holds no more than the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import (
    DECODERS,
    ROPE_FACTORS,
    DecoderCheckpoint,
    DecoderShape,
    FloatArray,
    interleave,
    load_decoder,
    name_in_gguf,
)
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_vocabulary import describe_vocabulary
from thrifty.errors import IntegrityError
from thrifty.types import OnProgress, Progress, ignore_progress

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
"""GGUF's numbers for the types of metadata."""

_LEFT_OUT = ("general.architecture", "general.alignment", "general.file_type",
             "general.quantization_version", "quantize.", "split.")  # fmt: skip
"""Keys that say how the old file was written, not what the model is."""


@dataclass(frozen=True)
class Value:
    """One value of the metadata. llama.cpp refuses numbers of another type than it expects."""

    value: Any
    kind: int
    item: int | None = None
    """For arrays."""


@dataclass(frozen=True)
class FloatTensor:
    """A tensor that is read when it is wanted. `shape` is outermost first, as in NumPy."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], FloatArray]

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF is to hold, in floats."""

    architecture: str
    shape: DecoderShape
    metadata: Mapping[str, Value]
    tensors: list[FloatTensor] = field(default_factory=list)


Encoder = Callable[[str, FloatArray, int], npt.NDArray[np.uint8]]
"""From a tensor's name, its values and a GGML type's number to its bytes, [rows, bytes of a row]."""


def read_content(folder: Path, name: str) -> GgufContent:
    """What a GGUF of the decoder in `folder` holds; `name` is what its metadata call it.

    Raises `FormatRefused` for what GGUF cannot express, or llama.cpp would compute otherwise.
    """
    checkpoint = load_decoder(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return _copy_content(GgufFile(ggufs[0]), checkpoint.shape)
    shape, architecture = checkpoint.shape, DECODERS[checkpoint.shape.architecture]
    tensors = _list_tensors(checkpoint, architecture)
    inner = next(t.shape[0] for t in tensors if t.name.endswith("ffn_gate.weight"))
    return GgufContent(
        architecture,
        shape,
        {
            "general.type": Value("model", STRING),
            "general.name": Value(name, STRING),
            **_describe_shape(shape, architecture, inner),
            **{
                key: _make_value(value) for key, value in describe_vocabulary(folder, shape).items()
            },
        },
        tensors,
    )


def _copy_content(file: GgufFile, shape: DecoderShape) -> GgufContent:
    metadata = {
        key: Value(value, *file.kinds[key])
        for key, value in file.metadata.items()
        if not key.startswith(_LEFT_OUT) and value != []
    }

    def tensor(name: str) -> FloatTensor:
        return FloatTensor(name, file.tensors[name].shape, lambda: file.read_tensor(name))

    return GgufContent(file.architecture, shape, metadata, [tensor(name) for name in file.tensors])


def _describe_shape(shape: DecoderShape, architecture: str, inner: int) -> dict[str, Value]:
    counts = {
        "block_count": shape.layers,
        "context_length": shape.context_length,
        "embedding_length": shape.hidden_size,
        "feed_forward_length": inner,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": shape.head_dim,
        "vocab_size": shape.vocab_size,
    }
    numbers = {
        "attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "rope.freq_base": shape.rope_theta,
    }
    found = {key: Value(value, U32) for key, value in counts.items()}
    scaling = shape.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        found["rope.scaling.type"] = Value("linear", STRING)
        numbers["rope.scaling.factor"] = scaling.factor
    found |= {key: Value(value, F32) for key, value in numbers.items()}
    return {f"{architecture}.{key}": value for key, value in found.items()}


def _make_value(value: Any) -> Value:
    """As llama.cpp types the values of a vocabulary."""
    if isinstance(value, bool):
        return Value(value, BOOL)
    if isinstance(value, int):
        return Value(value, U32)
    if isinstance(value, str):
        return Value(value, STRING)
    return Value(value, ARRAY, STRING if isinstance(value[0], str) else I32)


def _list_tensors(checkpoint: DecoderCheckpoint, architecture: str) -> list[FloatTensor]:
    """Every tensor of a transformers checkpoint, in the order of llama.cpp's converter."""
    shape, tensors = checkpoint.shape, checkpoint.tensors
    hidden, head_dim = shape.hidden_size, shape.head_dim
    queries, keys = shape.heads * head_dim, shape.kv_heads * head_dim
    turned = {"q_proj": shape.heads, "k_proj": shape.kv_heads} if architecture == "llama" else {}
    found: list[FloatTensor] = []

    def add(name: str, *sizes: int) -> None:
        heads = turned.get(name.split(".")[-2])

        def read() -> FloatArray:
            values = tensors.read_tensor(name)
            if values.shape != sizes:
                raise IntegrityError(
                    f"the tensor {name!r} is {values.shape}, and its model's settings say {sizes}; "
                    "fetch the model again"
                )
            return interleave(values, heads) if heads else values

        found.append(FloatTensor(name_in_gguf(name), sizes, read))

    add("model.embed_tokens.weight", shape.vocab_size, hidden)
    if shape.rope_scaling is not None and shape.rope_scaling.kind == "llama3":
        factors = _find_rope_factors(shape)
        found.append(FloatTensor(ROPE_FACTORS, factors.shape, lambda: factors))
    inner = 0
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        if layer == 0:
            inner = len(tensors.read_tensor(f"{prefix}mlp.gate_proj.weight"))
        add(f"{prefix}input_layernorm.weight", hidden)
        add(f"{prefix}post_attention_layernorm.weight", hidden)
        for letter, rows in (("q", queries), ("k", keys), ("v", keys)):
            add(f"{prefix}self_attn.{letter}_proj.weight", rows, hidden)
            if f"{prefix}self_attn.{letter}_proj.bias" in tensors:
                add(f"{prefix}self_attn.{letter}_proj.bias", rows)
            if f"{prefix}self_attn.{letter}_norm.weight" in tensors:
                add(f"{prefix}self_attn.{letter}_norm.weight", head_dim)
        for name, rows, columns in (
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            add(f"{prefix}{name}.weight", rows, columns)
            if f"{prefix}{name}.bias" in tensors:
                add(f"{prefix}{name}.bias", rows)
    add("model.norm.weight", hidden)
    if "lm_head.weight" in tensors:
        add("lm_head.weight", shape.vocab_size, hidden)
    return found


def _find_rope_factors(shape: DecoderShape) -> FloatArray:
    """What Llama 3.1's rule divides each rotary frequency by, [head_dim / 2]."""
    scaling = shape.rope_scaling
    assert scaling is not None
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
    turns = scaling.original_context / (2 * np.pi * shape.rope_theta**exponents)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    found: FloatArray = (1 / (smooth + (1 - smooth) / scaling.factor)).astype(np.float32)
    return found


def count_bytes(tensor: FloatTensor, kind: int) -> int:
    """What a tensor takes in a GGML type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    found: int = tensor.size // block * block_bytes
    return found


def write_gguf(
    path: Path,
    content: GgufContent,
    types: Mapping[str, int],
    encode: Encoder,
    more: Mapping[str, Value],
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Write `content` to `path`.

    Args:
        path: Is written anew.
        content: What it holds.
        types: For each tensor, by name, the number of its GGML type.
        encode: Makes a tensor's bytes.
        more: Metadata that say how this file was made.
        on_progress: Told of bytes that were written.

    Raises what reading and encoding raise, and `OSError` where the disk does not take it.
    """
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType, GGUFValueType

    writer = GGUFWriter(path, content.architecture)
    try:
        for key, value in {**content.metadata, **more}.items():
            item = None if value.item is None else GGUFValueType(value.item)
            stored = _to_bytes(value.value)
            writer.add_key_value(key, stored, GGUFValueType(value.kind), sub_type=item)
        for tensor in content.tensors:
            kind = types[tensor.name]
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), count_bytes(tensor, kind),
                raw_dtype=GGMLQuantizationType(kind),
            )  # fmt: skip
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(count_bytes(tensor, types[tensor.name]) for tensor in content.tensors)
        done = 0
        for tensor in content.tensors:
            data = encode(tensor.name, tensor.read(), types[tensor.name])
            writer.write_tensor_data(data)
            done += data.nbytes
            on_progress(Progress("write", done, total))
    finally:
        writer.close()


def _to_bytes(value: Any) -> Any:
    """Strings as they were read: tokens may hold bytes that are no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="surrogateescape")
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        return [_to_bytes(item) for item in value]
    return value


def encode_floats(name: str, values: FloatArray, kind: int) -> npt.NDArray[np.uint8]:
    """The types that NumPy makes: floats, and Q8_0. Raises `OverflowError` where float16 is too small,
    `IntegrityError` where a weight is no number.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if not np.isfinite(values).all():
        raise IntegrityError(f"the tensor {name!r} has a weight that is no finite number")
    if kind == GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise OverflowError(f"{name} has a weight beyond 65504, the largest float16")
        return halves.view(np.uint8)
    made: npt.NDArray[Any] = quantize(values, GGMLQuantizationType(kind))
    return made.view(np.uint8)
