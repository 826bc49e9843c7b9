"""Which GGML type each tensor gets under a scheme, by the rules of llama.cpp's own quantizer.

Some matrices count for more: the values of attention and the MLPs' last matrices, in the first and last
layers and every third between, and the head. Types of 256 weights a block do not fit every matrix; where
columns are no multiple of it, llama.cpp takes the next better type of 32, and so do we.

Rules: `llama_tensor_get_type` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from thrifty.artifacts.checkpoint import DecoderShape
from thrifty.artifacts.write_gguf import FloatTensor

F32, F16, Q4_0, Q5_0, Q5_1, Q8_0, BF16 = 0, 1, 2, 6, 7, 8, 30
Q3_K, Q4_K, Q5_K, Q6_K = 11, 12, 13, 14
"""GGML's numbers for its types."""
PLAIN = frozenset({F32, F16, BF16, Q8_0})
"""Types that NumPy makes."""

_BLOCKS = {Q3_K: 256, Q4_K: 256, Q5_K: 256, Q6_K: 256, Q4_0: 32, Q5_0: 32, Q5_1: 32, Q8_0: 32}
_INSTEAD = {Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}
"""Where columns are no multiple of a block."""
_BIG_LAYERS = 80
"""llama.cpp knows Llama and Qwen models of 70 billion parameters by their layers, and gives their
few heads of values more bits."""


@dataclass(frozen=True)
class Scheme:
    """One of llama.cpp's mixtures of types."""

    name: str
    usual: int
    file_type: int
    """What `general.file_type` says."""
    values: Callable[[int, int], int | None] = lambda layer, layers: None
    """The type of `attn_v` in a layer of so many; None: the usual one."""
    down: Callable[[int, int], int | None] = lambda layer, layers: None
    """The same for `ffn_down`."""
    output: int | None = None
    """The same for `attn_output`."""


def _matters(layer: int, layers: int) -> bool:
    """Layers in which some matrices get more bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _more(layer: int, layers: int) -> int | None:
    return Q6_K if _matters(layer, layers) else None


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("f32", F32, 0),
        Scheme("f16", F16, 1),
        Scheme("bf16", BF16, 32),
        Scheme("q8_0", Q8_0, 7),
        Scheme("q6_k", Q6_K, 18),
        Scheme("q5_k_m", Q5_K, 17, values=_more, down=_more),
        Scheme("q5_k_s", Q5_K, 16),
        Scheme("q4_k_m", Q4_K, 15, values=_more, down=_more),
        Scheme(
            "q4_k_s", Q4_K, 14,
            values=lambda layer, layers: Q5_K if layer < 4 else None,
            down=lambda layer, layers: Q5_K if layer < layers // 8 else None,
        ),
        Scheme(
            "q3_k_m", Q3_K, 12,
            values=lambda layer, layers: Q5_K if layer < 2 else Q4_K,
            down=lambda layer, layers: Q5_K if layer < layers // 16 else Q4_K,
            output=Q4_K,
        ),
    )
}  # fmt: skip
"""Every scheme, by the name that `thrifty quantize` takes."""


def choose_types(
    scheme: Scheme, tensors: Iterable[FloatTensor], shape: DecoderShape
) -> dict[str, int]:
    """The GGML type of each tensor, by its name. Vectors and norms stay in 32 bits."""
    tensors = list(tensors)
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    found: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.name
        if len(tensor.shape) < 2 or not name.endswith("weight") or "_norm.weight" in name:
            found[name] = F32
        elif scheme.usual in _BLOCKS:
            found[name] = _fit(_choose(scheme, tensor, shape, tied), tensor.shape[-1])
        else:
            found[name] = scheme.usual
    return found


def _choose(scheme: Scheme, tensor: FloatTensor, shape: DecoderShape, tied: bool) -> int:
    name, usual = tensor.name, scheme.usual
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        whole = tensor.shape[-1] % _BLOCKS[usual] == 0
        return Q6_K if whole and usual != Q8_0 else Q8_0
    if not name.startswith("blk."):
        return usual
    _, layer, part, *_ = name.split(".")
    chosen = None
    if part == "attn_v":
        chosen = scheme.values(int(layer), shape.layers)
        big = shape.layers == _BIG_LAYERS and shape.heads != shape.kv_heads
        if big and (chosen or usual) in (Q3_K, Q4_K):
            chosen = Q5_K
    elif part == "ffn_down":
        chosen = scheme.down(int(layer), shape.layers)
    elif part == "attn_output":
        chosen = scheme.output
    return usual if chosen is None else chosen


def _fit(kind: int, columns: int) -> int:
    if columns % _BLOCKS[kind]:
        kind = _INSTEAD.get(kind, F16)
    return kind if columns % _BLOCKS.get(kind, 1) == 0 else F16
