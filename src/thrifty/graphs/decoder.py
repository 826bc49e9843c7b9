"""A Llama-like decoder as an OpenVINO graph, built from its weights without PyTorch.

The graph is stateful: each layer keeps its keys and values in variables. That is the form which
OpenVINO GenAI turns into paged attention, and which also runs as it is. Covered are the Llama,
Mistral, Qwen2 (biases on q, k, v) and Qwen3 (norms on q and k) kinds.

Inputs: `input_ids` [batch, tokens], `attention_mask` [batch, past + tokens], `position_ids`
[batch, tokens], `beam_idx` [batch]. Output: `logits` [batch, tokens, vocabulary].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import PartialShape, Type
from openvino import opset13 as op
from openvino.op import assign, read_value
from openvino.op.util import Variable, VariableInfo

from thrifty.artifacts.checkpoint import (
    ROPE_FACTORS,
    DecoderCheckpoint,
    DecoderShape,
    FloatArray,
    RopeScaling,
    Tensors,
)
from thrifty.graphs.weights import SchemeWeights, Weights, read_weight
from thrifty.types import OnProgress, Progress, ignore_progress

TAP = "tap:"
UNSEEN = -65504.0
"""The least that 16 bits hold."""
_TO_END = np.iinfo(np.int64).max


def build_decoder(
    checkpoint: DecoderCheckpoint,
    weights: str | Weights,
    on_progress: OnProgress = ignore_progress,
    *,
    taps: bool = False,
) -> ov.Model:
    """The graph of `checkpoint` with its weights as `weights` keeps them, or under a scheme (`none`,
    `int8` or `int4`). With `taps` it also gives out what each matrix is multiplied with, as outputs
    named `tap:` and the matrix's name.
    """
    kept = SchemeWeights(weights) if isinstance(weights, str) else weights
    return _DecoderBuilder(checkpoint, kept, taps).build(on_progress)


def make_inputs(tokens: npt.NDArray[np.int64], past: int = 0) -> dict[str, Any]:
    """The graph's inputs for one sequence of tokens, behind `past` that it has seen."""
    count = len(tokens)
    return {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, past + count), np.int64),
        "position_ids": np.arange(past, past + count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


def compute_rope_frequencies(shape: DecoderShape, tensors: Tensors) -> FloatArray:
    """Angle per position for each pair of dimensions, [head_dim / 2]. Su et al. 2021, 2104.09864."""
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
    frequencies = 1.0 / shape.rope_theta**exponents
    if ROPE_FACTORS in tensors:
        frequencies = frequencies / read_weight(tensors, ROPE_FACTORS, len(frequencies))
    if shape.rope_scaling is not None:
        frequencies = _scale_frequencies(frequencies, shape.rope_scaling)
    return frequencies.astype(np.float32)


def _scale_frequencies(frequencies: Any, scaling: RopeScaling) -> Any:
    """Stretch the positions: all alike (`linear`), or only the slow dimensions (`llama3`)."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_context * frequencies / (2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    return frequencies * (smooth + (1 - smooth) / scaling.factor)


def _ints(values: Any, dtype: Any = np.int64) -> Any:
    return op.constant(np.array(values, dtype=dtype))


def _floats(values: Any) -> Any:
    return op.constant(np.array(values, dtype=np.float32))


class _DecoderBuilder:
    def __init__(self, checkpoint: DecoderCheckpoint, weights: Weights, taps: bool) -> None:
        self.shape = checkpoint.shape
        self.tensors = checkpoint.tensors
        self.weights = weights
        self.taps: list[Any] | None = [] if taps else None
        self._tapped: Any = None
        self.sinks: list[Any] = []
        self.input_ids = self._input("input_ids", [-1, -1], Type.i64)
        self.attention_mask = self._input("attention_mask", [-1, -1], Type.i64)
        self.position_ids = self._input("position_ids", [-1, -1], Type.i64)
        self.beam_idx = self._input("beam_idx", [-1], Type.i32)
        input_shape = op.shape_of(self.input_ids)
        self.batch = op.gather(input_shape, _ints([0]), _ints(0))
        self.tokens = op.gather(input_shape, _ints([1]), _ints(0))

    def build(self, on_progress: OnProgress) -> ov.Model:
        shape = self.shape
        table = self._table("model.embed_tokens.weight")
        hidden = op.gather(table, op.convert(self.input_ids, "i32"), _ints(0, np.int32))
        mask = self._build_mask()
        cos, sin = self._build_rotary()
        for layer in range(shape.layers):
            on_progress(Progress("convert", layer, shape.layers, "layers"))
            hidden = self._build_layer(f"model.layers.{layer}.", layer, hidden, mask, cos, sin)
        hidden = self._norm(hidden, "model.norm.weight", shape.hidden_size)
        head = table
        if "lm_head.weight" in self.tensors:
            head = self._table("lm_head.weight")
        logits = op.result(op.matmul(hidden, head, False, True))
        logits.output(0).set_names({"logits"})
        logits.set_friendly_name("logits")
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        inputs += self.weights.inputs
        on_progress(Progress("convert", shape.layers, shape.layers, "layers"))
        return ov.Model([logits, *(self.taps or ())], self.sinks, inputs, "decoder")

    @staticmethod
    def _input(name: str, shape: list[int], dtype: Any) -> Any:
        parameter = op.parameter(shape, dtype)
        parameter.set_friendly_name(name)
        parameter.output(0).set_names({name})
        return parameter

    def _build_mask(self) -> Any:
        """What is added to each query's score of each key, [batch, 1, tokens, past + tokens]: nothing, or
        so little that it is not seen. With a boolean mask the engine takes a much slower way.
        """
        total = op.gather(op.shape_of(self.attention_mask), _ints([1]), _ints(0))
        first = op.squeeze(op.subtract(total, self.tokens), _ints([0]))
        last = op.squeeze(total, _ints([0]))
        keys = op.unsqueeze(op.range(_ints(0), last, _ints(1), "i64"), _ints([0]))
        queries = op.unsqueeze(op.range(first, last, _ints(1), "i64"), _ints([1]))
        causal = op.unsqueeze(op.less_equal(keys, queries), _ints([0, 1]))
        present = op.unsqueeze(op.not_equal(self.attention_mask, _ints(0)), _ints([1, 2]))
        return op.select(op.logical_and(causal, present), _floats(0.0), _floats(UNSEEN))

    def _build_rotary(self) -> tuple[Any, Any]:
        """Cosines and sines of every position's angles, each [batch, 1, tokens, head_dim]."""
        frequencies = compute_rope_frequencies(self.shape, self.tensors).reshape(1, -1, 1)
        target = op.concat([self.batch, _ints([1]), _ints([1])], 0)
        spread = op.broadcast(_floats(frequencies), target, broadcast_spec="BIDIRECTIONAL")
        positions = op.convert(op.unsqueeze(self.position_ids, _ints(1)), "f32")
        angles = op.transpose(op.matmul(spread, positions, False, False), _ints([0, 2, 1]))
        doubled = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(doubled), _ints(1)), op.unsqueeze(op.sin(doubled), _ints(1))

    def _build_layer(
        self, prefix: str, layer: int, hidden: Any, mask: Any, cos: Any, sin: Any
    ) -> Any:
        shape = self.shape
        attention = f"{prefix}self_attn."
        width, heads_width = shape.hidden_size, shape.heads * shape.head_dim
        x = self._norm(hidden, f"{prefix}input_layernorm.weight", width)
        query = self._heads(x, f"{attention}q_proj", shape.heads, f"{attention}q_norm.weight")
        key = self._heads(x, f"{attention}k_proj", shape.kv_heads, f"{attention}k_norm.weight")
        value = self._heads(x, f"{attention}v_proj", shape.kv_heads, None)
        keys = self._cache(layer, "key", self._rotate(key, cos, sin))
        values = self._cache(layer, "value", value)
        mixed = op.scaled_dot_product_attention(self._rotate(query, cos, sin), keys, values, mask)
        joined = op.reshape(
            op.transpose(mixed, _ints([0, 2, 1, 3])),
            _ints([0, 0, heads_width]),
            special_zero=True,
        )
        hidden = op.add(hidden, self._linear(joined, f"{attention}o_proj", width, heads_width))
        x = self._norm(hidden, f"{prefix}post_attention_layernorm.weight", width)
        gate = op.swish(self._linear(x, f"{prefix}mlp.gate_proj", None, width))
        gated = op.multiply(gate, self._linear(x, f"{prefix}mlp.up_proj", None, width))
        return op.add(hidden, self._linear(gated, f"{prefix}mlp.down_proj", width, None))

    def _table(self, name: str) -> Any:
        shape = self.shape
        values = read_weight(self.tensors, name, shape.vocab_size, shape.hidden_size)
        return self.weights.table(name, values)

    def _norm(self, x: Any, weight: str, size: int, rank: int = 3) -> Any:
        """Root mean square norm over the last axis. Zhang & Sennrich 2019, 1910.07467."""
        scale = read_weight(self.tensors, weight, size).reshape([1] * (rank - 1) + [-1])
        square = op.power(x, _floats(2.0))
        mean = op.reduce_mean(square, _ints([-1], np.int32), True)
        inverse = op.divide(_floats(1.0), op.sqrt(op.add(mean, _floats(self.shape.norm_epsilon))))
        return op.multiply(op.multiply(inverse, x), _floats(scale))

    def _linear(self, x: Any, name: str, rows: int | None, columns: int | None) -> Any:
        values = read_weight(self.tensors, f"{name}.weight", rows, columns)
        if self.taps is not None:
            self._tap(x, name)
        y = self.weights.multiply(x, name, values)
        if f"{name}.bias" in self.tensors:
            bias = read_weight(self.tensors, f"{name}.bias", len(values)).reshape(1, 1, -1)
            y = op.add(y, _floats(bias))
        return y

    def _tap(self, x: Any, name: str) -> None:
        """Give `x` out. Several matrices that are fed the same are names of one output."""
        assert self.taps is not None
        if self._tapped is not x:
            self._tapped = x
            self.taps.append(op.result(x))
            self.taps[-1].output(0).set_names(set())
        output = self.taps[-1].output(0)
        output.set_names({*output.get_names(), f"{TAP}{name}"})

    def _heads(self, x: Any, name: str, count: int, norm: str | None) -> Any:
        """Project, and split into heads: [batch, heads, tokens, head_dim]."""
        size = self.shape.head_dim
        joined = self._linear(x, name, count * size, self.shape.hidden_size)
        split = op.reshape(joined, _ints([0, 0, count, size]), special_zero=True)
        if norm is not None and norm in self.tensors:
            split = self._norm(split, norm, size, rank=4)
        return op.transpose(split, _ints([0, 2, 1, 3]))

    def _rotate(self, x: Any, cos: Any, sin: Any) -> Any:
        half = self.shape.head_dim // 2
        axis, step = _ints([3]), _ints([1])
        upper = op.slice(x, _ints([half]), _ints([_TO_END]), step, axis)
        lower = op.slice(x, _ints([0]), _ints([half]), step, axis)
        turned = op.concat([op.multiply(upper, _floats(-1.0)), lower], -1)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def _cache(self, layer: int, kind: str, new: Any) -> Any:
        """Append `new` to the layer's past, and repeat it for the query heads that share it."""
        shape = self.shape
        info = VariableInfo()
        info.data_shape = PartialShape([-1, shape.kv_heads, -1, shape.head_dim])
        info.data_type = Type.f32
        info.variable_id = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        variable = Variable(info)
        empty = op.concat(
            [self.batch, _ints([shape.kv_heads]), _ints([0]), _ints([shape.head_dim])], 0
        )
        past = op.gather(
            read_value(op.broadcast(_floats(0.0), empty), variable), self.beam_idx, _ints(0)
        )
        whole = op.concat([past, new], 2)
        self.sinks.append(assign(whole, variable))
        repeats = shape.heads // shape.kv_heads
        if repeats == 1:
            return whole
        length = op.gather(op.shape_of(whole), _ints([2]), _ints(0))
        target = op.concat(
            [self.batch, _ints([shape.kv_heads]), _ints([repeats]), length,
             _ints([shape.head_dim])], 0,
        )  # fmt: skip
        spread = op.broadcast(op.unsqueeze(whole, _ints(2)), target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(spread, _ints([0, shape.heads, -1, shape.head_dim]), special_zero=True)
