"""Many variants of a decoder in one graph, with a mask for each part that can be switched off.

Testing a variant is then a run with other masks, without building another graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.decoder import build_decoder, make_inputs
from thrifty.graphs.weights import Weights

FloatArray = npt.NDArray[np.float32]

_NAME = "masks"


class AblationMasks:
    """The graph's input of masks."""

    def __init__(self, count: int) -> None:
        self.input = op.parameter([count], ov.Type.f32, name=_NAME)
        self.input.output(0).set_names({_NAME})

    def multiply(self, x: Any, index: int) -> Any:
        """`x` times the mask with that index."""
        at = op.constant(np.array([index], np.int64))
        return op.multiply(x, op.gather(self.input, at, op.constant(np.int64(0))))


class MaskedModel:
    """A decoder whose weights have masks, compared with its output under the masks `usual`."""

    def __init__(
        self,
        checkpoint: DecoderCheckpoint,
        weights: Weights,
        windows: Sequence[TokenArray],
        usual: FloatArray,
    ) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        model = build_decoder(checkpoint, weights)
        self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._compare = (
            ov.Core()
            .compile_model(_build_divergence(checkpoint.shape.vocab_size), "CPU", settings)
            .create_infer_request()
        )
        self._windows = windows
        self._references = [self._run(tokens, usual).copy() for tokens in windows]

    def measure(self, masks: FloatArray) -> float:
        """The mean KL divergence in nats under `masks`, from the output under the usual masks."""
        total, count = 0.0, 0
        for tokens, reference in zip(self._windows, self._references, strict=True):
            pair = {"reference": reference, "other": self._run(tokens, masks)}
            self._compare.infer(pair, share_inputs=True)
            found = self._compare.get_output_tensor(0).data
            total += float(found.sum(dtype=np.float64))
            count += len(tokens)
        return max(0.0, total / count)

    def _run(self, tokens: TokenArray, masks: FloatArray) -> FloatArray:
        """Logits [T, vocabulary], in memory that the next run overwrites."""
        self._request.reset_state()
        self._request.infer(make_inputs(tokens) | {_NAME: masks})
        logits: FloatArray = self._request.get_tensor("logits").data[0]
        return logits


def _build_divergence(vocab_size: int) -> ov.Model:
    """A graph of the KL divergence in nats, [T], from `reference` to `other` logits [T,
    vocabulary].

    The engine's threads compute it many times faster than NumPy.
    """
    inputs = [op.parameter([-1, vocab_size], ov.Type.f32, name=n) for n in ("reference", "other")]
    for parameter in inputs:
        parameter.output(0).set_names({parameter.get_friendly_name()})
    reference, other = (op.log_softmax(parameter, 1) for parameter in inputs)
    terms = op.multiply(op.exp(reference), op.subtract(reference, other))
    return ov.Model([op.reduce_sum(terms, op.constant(np.array([1])))], inputs, "divergence")
