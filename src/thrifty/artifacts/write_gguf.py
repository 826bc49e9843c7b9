"""Write a decoder as GGUF, for llama.cpp and the tools built on it.

A model that comes from a GGUF keeps its metadata and tokenizer. A transformers checkpoint gets the
metadata that llama.cpp's converter would write, and `llama` models its order of rotary dimensions.
Tensors are read, encoded and written one by one, so that memory holds at most the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
"""GGUF's numbers for metadata types."""

_LEFT_OUT = ("general.architecture", "general.alignment", "general.file_type",
             "general.quantization_version", "quantize.", "split.")  # fmt: skip
"""Keys that describe how the old file was written, not the model."""


@dataclass(frozen=True)
class Value:
    """One metadata value with its type; llama.cpp refuses numbers of an unexpected type."""

    value: Any
    kind: int
    item: int | None = None
    """The type of an array's values."""


@dataclass(frozen=True)
class FloatTensor:
    """A tensor that is read on demand. `shape` is outermost first, as in NumPy."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], FloatArray]

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufData:
    """The content of a GGUF of any architecture, in floats."""

    architecture: str
    metadata: Mapping[str, Value]
    tensors: list[FloatTensor]


@dataclass(frozen=True)
class GgufContent(GgufData):
    """That of a decoder whose shape is known."""

    shape: DecoderShape


Encoder = Callable[[str, FloatArray, int], npt.NDArray[np.uint8]]
"""Encodes a tensor: from its name, its values and a GGML type to bytes, [rows, bytes per row]."""


def read_content(folder: Path, name: str) -> GgufContent:
    """The content of a GGUF of the decoder in `folder`; `name` is the model's name in the metadata.

    Raises `FormatRefused` for a model that GGUF cannot express, or llama.cpp computes differently.
    """
    checkpoint = load_decoder(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        data = copy_content([GgufFile(ggufs[0])])
        return GgufContent(data.architecture, data.metadata, data.tensors, checkpoint.shape)
    shape = checkpoint.shape
    # An adapter of a GGUF has that one's shape, with GGUF's name.
    architecture = DECODERS.get(shape.architecture, shape.architecture)
    tensors = _list_tensors(checkpoint, architecture)
    inner = next(t.shape[0] for t in tensors if t.name.endswith("ffn_gate.weight"))
    return GgufContent(
        architecture,
        {
            "general.type": Value("model", STRING),
            "general.name": Value(name, STRING),
            **_describe_shape(shape, architecture, inner),
            **{
                key: _make_value(value) for key, value in describe_vocabulary(folder, shape).items()
            },
        },
        tensors,
        shape,
    )


def copy_content(files: Sequence[GgufFile]) -> GgufData:
    """The content of a GGUF, whatever its architecture; `files` are its parts, in their order."""
    first = files[0]
    metadata = {
        key: Value(value, *first.kinds[key])
        for key, value in first.metadata.items()
        if not key.startswith(_LEFT_OUT) and value != []
    }

    def tensor(file: GgufFile, name: str) -> FloatTensor:
        return FloatTensor(name, file.tensors[name].shape, lambda: file.read_tensor(name))

    tensors = [tensor(file, name) for file in files for name in file.tensors]
    return GgufData(first.architecture, metadata, tensors)


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
    """A value with the type that llama.cpp gives it in a vocabulary."""
    if isinstance(value, bool):
        return Value(value, BOOL)
    if isinstance(value, int):
        return Value(value, U32)
    if isinstance(value, str):
        return Value(value, STRING)
    return Value(value, ARRAY, STRING if isinstance(value[0], str) else I32)


def _list_tensors(checkpoint: DecoderCheckpoint, architecture: str) -> list[FloatTensor]:
    """The tensors of a transformers checkpoint, in the order of llama.cpp's converter."""
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
                    f"the tensor {name!r} has the shape {values.shape}, but the model's settings "
                    f"imply {sizes}; fetch the model again"
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
    """The divisors of the rotary frequencies by Llama 3.1's rule, [head_dim / 2]."""
    scaling = shape.rope_scaling
    assert scaling is not None
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
    turns = scaling.original_context / (2 * np.pi * shape.rope_theta**exponents)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    found: FloatArray = (1 / (smooth + (1 - smooth) / scaling.factor)).astype(np.float32)
    return found


def count_bytes(tensor: FloatTensor, kind: int) -> int:
    """The size of a tensor in a GGML type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    found: int = tensor.size // block * block_bytes
    return found


def write_gguf(
    path: Path,
    content: GgufData,
    types: Mapping[str, int],
    encode: Encoder,
    more: Mapping[str, Value],
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Write `content` to `path`.

    Args:
        path: The file to create or replace.
        content: What to write.
        types: The GGML type of each tensor, by name.
        encode: Encodes a tensor.
        more: Metadata that describe how this file was made.
        on_progress: Called with the bytes written.

    Raises the errors of reading and encoding, and `OSError`.
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
    """Encode strings as they were read: tokens may contain bytes that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="surrogateescape")
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        return [_to_bytes(item) for item in value]
    return value


def encode_floats(name: str, values: FloatArray, kind: int) -> npt.NDArray[np.uint8]:
    """Encode the types that NumPy can: floats and Q8_0.

    Raises `OverflowError` if float16 cannot represent a weight, `IntegrityError` if a weight is not
    finite.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    if not np.isfinite(values).all():
        raise IntegrityError(f"the tensor {name!r} has a weight that is not finite")
    if kind == GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise OverflowError(f"{name} has a weight above 65504, the largest float16")
        return halves.view(np.uint8)
    made: npt.NDArray[Any] = quantize(values, GGMLQuantizationType(kind))
    return made.view(np.uint8)
