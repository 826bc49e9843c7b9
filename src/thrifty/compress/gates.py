"""Many variants of a decoder in one graph: a number for each thing that can be on or off.

Trying a variant then is a run with other numbers, without building anything anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.engines.openvino.decoder_graph import build_decoder, make_inputs
from thrifty.engines.openvino.weights import Weights
from thrifty.evaluate.windows import TokenArray

FloatArray = npt.NDArray[np.float32]

_NAME = "gates"


class Gates:
    """The graph's input of gates."""

    def __init__(self, count: int) -> None:
        self.input = op.parameter([count], ov.Type.f32, name=_NAME)
        self.input.output(0).set_names({_NAME})

    def multiply(self, x: Any, index: int) -> Any:
        """`x` times the gate of that number."""
        at = op.constant(np.array([index], np.int64))
        return op.multiply(x, op.gather(self.input, at, op.constant(np.int64(0))))


class GatedModel:
    """A decoder whose weights have gates, compared with itself as `usual` gates have it."""

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
        self._windows = windows
        self._references = [self._run(tokens, usual) for tokens in windows]

    def measure(self, gates: FloatArray) -> float:
        """The mean divergence (KL, nats) that other gates bring."""
        total, count = 0.0, 0
        for tokens, reference in zip(self._windows, self._references, strict=True):
            other = self._run(tokens, gates)
            total += float((np.exp(reference) * (reference - other)).sum())
            count += len(tokens)
        return max(0.0, total / count)

    def _run(self, tokens: TokenArray, gates: FloatArray) -> FloatArray:
        self._request.reset_state()
        self._request.infer(make_inputs(tokens) | {_NAME: gates})
        logits = self._request.get_tensor("logits").data[0]
        logits = logits - logits.max(axis=1, keepdims=True)
        found: FloatArray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return found
