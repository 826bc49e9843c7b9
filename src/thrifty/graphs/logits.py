"""Log-probabilities of tokens from a decoder's logits.

A small graph computes them without copying the logits, on OpenVINO's own threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]

BLOCK = 64
"""Logits in a block, in the search for the k largest."""


class LogitReader:
    """Looks up tokens in logits of one vocabulary."""

    def __init__(self, vocab_size: int, properties: dict[str, Any]) -> None:
        """`properties` are those under which the decoder was compiled; this runs in float32."""
        exactly = {**properties, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = ov.Core().compile_model(_build_score(vocab_size), "CPU", exactly)
        self._request = compiled.create_infer_request()

    def look_up(self, logits: Logits, ids: Tokens) -> tuple[Logits, Tokens, Logits]:
        """The log-probabilities of `ids` [T, n] under `logits` [T, vocabulary], the ids of the
        largest logits [T], and what is taken from a logit to make a log-probability [T, 1].
        """
        self._request.infer({"logits": logits, "ids": ids}, share_inputs=True)
        normalizer: Logits = self._request.get_tensor("normalizer").data
        logprobs: Logits = self._request.get_tensor("chosen").data - normalizer
        top = self._request.get_tensor("top").data[:, 0].astype(np.int64)
        return logprobs, top, normalizer


def find_largest(logits: Logits, k: int) -> Tokens:
    """The ids of the `k` largest logits in each row, in descending order: [T, k].

    Only the k blocks with the largest maxima can contain any of them.
    """
    rows, size = logits.shape
    count = size // BLOCK
    if count <= k:
        return _order(logits, np.argpartition(logits, -k, axis=1)[:, -k:])
    largest = logits[:, : count * BLOCK].reshape(rows, count, BLOCK).max(axis=2)
    blocks = np.argpartition(largest, -k, axis=1)[:, -k:, None]
    rest = np.broadcast_to(np.arange(count * BLOCK, size), (rows, size - count * BLOCK))
    places = np.concatenate([(blocks * BLOCK + np.arange(BLOCK)).reshape(rows, -1), rest], axis=1)
    found = np.take_along_axis(logits, places, 1)
    kept = np.argpartition(found, -k, axis=1)[:, -k:]
    return _order(logits, np.take_along_axis(places, kept, 1))


def _order(logits: Logits, ids: Tokens) -> Tokens:
    order = np.argsort(np.take_along_axis(logits, ids, 1), axis=1, kind="stable")[:, ::-1]
    return np.take_along_axis(ids, order, 1)


def _build_score(vocab_size: int) -> ov.Model:
    """A graph from logits [T, vocabulary] and ids [T, n] to the chosen logits [T, n], the logarithm
    of the sum of all exponentials [T, 1], and the id of the largest logit [T, 1].
    """
    logits = op.parameter([-1, vocab_size], ov.Type.f32, name="logits")
    ids = op.parameter([-1, -1], ov.Type.i64, name="ids")
    for parameter in (logits, ids):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    axis = op.constant(np.array([1], np.int64))
    largest = op.reduce_max(logits, axis, True)
    total = op.reduce_sum(op.exp(op.subtract(logits, largest)), axis, True)
    best = op.topk(logits, op.constant(np.int64(1)), 1, "max", "none", index_element_type="i64")
    results = []
    for name, output in (
        ("chosen", op.gather_elements(logits, ids, 1).output(0)),
        ("normalizer", op.add(op.log(total), largest).output(0)),
        ("top", best.output(1)),
    ):
        result = op.result(output)
        result.output(0).set_names({name})
        results.append(result)
    return ov.Model(results, [logits, ids], "score")
