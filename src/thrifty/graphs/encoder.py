"""A BERT-like encoder as an OpenVINO graph that gives one embedding for each text, or one logit for
each pair of texts.

Pooling and normalization are part of the graph, and so is the head of a reranker. Devlin et al. 2018
(1810.04805); Reimers & Gurevych 2019 (1908.10084); Nogueira & Cho 2019 (1901.04085).

Inputs: `input_ids` and `attention_mask`, both [batch, tokens]; `token_type_ids`, alike, of rerankers
that know two kinds of segments. Output: `embeddings` [batch, hidden], or `logits` [batch, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import Tensors
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint
from thrifty.graphs.weights import SchemeWeights, Weights, read_weight
from thrifty.types import OnProgress, Progress, ignore_progress

TAP = "tap:"
OUTPUT = "encoder.output"
"""The name by which what the last layer gives is tapped."""
Mix = Callable[[int, Any, Any], Any]
"""From a layer's number, its input and its output: what goes on behind it."""


def build_encoder(
    checkpoint: EncoderCheckpoint,
    weights: str | Weights,
    on_progress: OnProgress = ignore_progress,
    *,
    taps: bool = False,
    mix: Mix | None = None,
) -> ov.Model:
    """The graph of `checkpoint` with its weights as `weights` keeps them, or under a scheme (`none`,
    `int8` or `int4`). With `taps` it also gives out what each matrix is multiplied with, as outputs
    named `tap:` and the first of the matrices that are fed it, and what the last layer gives. `mix` may change what layers do.
    """
    shape, tensors = checkpoint.shape, checkpoint.tensors
    kept = SchemeWeights(weights) if isinstance(weights, str) else weights
    tapped: list[Any] = []
    width = shape.hidden_size
    head_dim = width // shape.heads
    input_ids, attention_mask = inputs = [_input("input_ids"), _input("attention_mask")]

    def linear(x: Any, name: str, rows: int | None = width, columns: int | None = width) -> Any:
        values = read_weight(tensors, f"{name}.weight", rows, columns)
        bias = read_weight(tensors, f"{name}.bias", len(values)).reshape(1, 1, -1)
        if taps and not name.endswith(("self.key", "self.value")):
            tapped.append(op.result(x))
            tapped[-1].output(0).set_names({f"{TAP}{name}"})
        return op.add(kept.multiply(x, name, values), op.constant(bias))

    def norm(x: Any, name: str) -> Any:
        normed = op.mvn(x, _ints([-1]), True, shape.norm_epsilon, "inside_sqrt")
        scale = read_weight(tensors, f"{name}.weight", width).reshape(1, 1, -1)
        shift = read_weight(tensors, f"{name}.bias", width).reshape(1, 1, -1)
        return op.add(op.multiply(normed, op.constant(scale)), op.constant(shift))

    def heads(x: Any, name: str) -> Any:
        split = op.reshape(linear(x, name), _ints([0, 0, shape.heads, head_dim]), special_zero=True)
        return op.transpose(split, _ints([0, 2, 1, 3]))

    table = read_weight(tensors, "embeddings.word_embeddings.weight", shape.vocab_size, width)
    words = op.gather(
        kept.table("embeddings.word_embeddings.weight", table),
        op.convert(input_ids, "i32"),
        _ints(0),
    )
    tokens = op.gather(op.shape_of(input_ids), _ints(1), _ints(0))
    places = read_weight(
        tensors, "embeddings.position_embeddings.weight",
        shape.first_position + shape.context_length, width,
    )  # fmt: skip
    positions = op.gather(
        op.constant(places[shape.first_position :]),
        op.range(_ints(0), tokens, _ints(1), "i64"),
        _ints(0),
    )
    kinds = read_weight(tensors, "embeddings.token_type_embeddings.weight", None, width)
    segment = op.constant(kinds[None, :1])
    if shape.pooling == "rank" and len(kinds) > 1:
        inputs.append(_input("token_type_ids"))
        segment = op.gather(op.constant(kinds), op.convert(inputs[-1], "i32"), _ints(0))
    hidden = op.add(op.add(words, op.unsqueeze(positions, _ints(0))), segment)
    hidden = norm(hidden, "embeddings.LayerNorm")
    mask = op.unsqueeze(op.not_equal(attention_mask, _ints(0)), _ints([1, 2]))
    for layer in range(shape.layers):
        on_progress(Progress("convert", layer, shape.layers, "layers"))
        prefix = f"encoder.layer.{layer}."
        before = hidden
        mixed = op.scaled_dot_product_attention(
            heads(hidden, f"{prefix}attention.self.query"),
            heads(hidden, f"{prefix}attention.self.key"),
            heads(hidden, f"{prefix}attention.self.value"),
            mask,
        )
        joined = op.reshape(
            op.transpose(mixed, _ints([0, 2, 1, 3])),
            _ints([0, 0, width]),
            special_zero=True,
        )
        attended = op.add(linear(joined, f"{prefix}attention.output.dense"), hidden)
        attended = norm(attended, f"{prefix}attention.output.LayerNorm")
        inner = op.gelu(linear(attended, f"{prefix}intermediate.dense", None, width), "erf")
        hidden = op.add(linear(inner, f"{prefix}output.dense", width, None), attended)
        hidden = norm(hidden, f"{prefix}output.LayerNorm")
        if mix is not None:
            hidden = mix(layer, before, hidden)
    if taps:
        tapped.append(op.result(hidden))
        tapped[-1].output(0).set_names({f"{TAP}{OUTPUT}"})
    ranks = shape.pooling == "rank"
    found = _rank(hidden, tensors) if ranks else _pool(hidden, attention_mask, shape.pooling)
    if shape.normalize:
        found = op.normalize_l2(found, _ints([1]), 1e-24, "max")
    result = op.result(found)
    result.output(0).set_names({"logits" if ranks else "embeddings"})
    on_progress(Progress("convert", shape.layers, shape.layers, "layers"))
    return ov.Model([result, *tapped], [*inputs, *kept.inputs], "encoder")


def _ints(values: Any) -> Any:
    return op.constant(np.array(values, dtype=np.int64))


def _input(name: str) -> Any:
    parameter = op.parameter([-1, -1], Type.i64)
    parameter.set_friendly_name(name)
    parameter.output(0).set_names({name})
    return parameter


def _rank(hidden: Any, tensors: Tensors) -> Any:
    """The logit of a reranker's head, by the names of BERT or RoBERTa. The head is small and stays in
    floats.
    """
    bert = "pooler.dense.weight" in tensors
    names = ("pooler.dense", "classifier") if bert else ("classifier.dense", "classifier.out_proj")

    def linear(x: Any, name: str, rows: int) -> Any:
        weight = read_weight(tensors, f"{name}.weight", rows, None)
        bias = read_weight(tensors, f"{name}.bias", rows)
        product = op.matmul(x, op.constant(weight), False, True)
        return op.add(product, op.constant(bias[None]))

    width = len(tensors.read_tensor(f"{names[0]}.bias"))
    first = op.gather(hidden, _ints(0), _ints(1))
    return linear(op.tanh(linear(first, names[0], width)), names[1], 1)


def _pool(hidden: Any, attention_mask: Any, pooling: str) -> Any:
    """One vector for each text: its first token's (`cls`), or the mean over its tokens."""
    if pooling == "cls":
        return op.gather(hidden, _ints(0), _ints(1))
    weights = op.unsqueeze(op.convert(attention_mask, "f32"), _ints(2))
    total = op.reduce_sum(op.multiply(hidden, weights), _ints([1]), False)
    count = op.reduce_sum(weights, _ints([1]), False)
    return op.divide(total, count)
