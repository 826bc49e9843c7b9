"""A decoder as OpenVINO IR: the same graph as is served, run over whole windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import read_note
from thrifty.errors import EvaluationError
from thrifty.evaluate.paged import PagedModel
from thrifty.evaluate.scorer import Logprobs, TokenScores, TopTokens
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.arithmetic import (
    REFERENCE_PROPERTIES,
    digest_features,
    limit_features,
    limit_properties,
)
from thrifty.graphs.weights import choose_activation_group
from thrifty.text.tokenizer import TextTokenizer

BLOCK = 64
"""Logits in a block, in the search for the k largest."""


class OpenVinoScorer:
    """Runs a prepared decoder.

    A second, small graph computes log-probabilities from the logits without copying them, on the
    engine's own threads.
    """

    def __init__(
        self,
        model: ov.Model,
        tokenizer: TextTokenizer,
        label: str,
        identity: str,
        *,
        context_length: int,
        eos_token_ids: Sequence[int] = (),
        exact: bool = False,
        kv_precision: str | None = None,
    ) -> None:
        """`exact` computes in float32 throughout, as a reference should; otherwise the engine
        computes as it does in serving. `kv_precision` (`u8` or `f16`) computes attention over a
        cache like the one in serving; it modifies `model`.
        """
        self.label = label
        group = 0 if exact else choose_activation_group(model)
        arithmetic = f"activations-{group}" if group else "f32"
        self.identity = f"{identity}+{arithmetic}"
        if kv_precision is not None:
            self.identity += f"+kv-{kv_precision}"
        if not exact:
            # 8-bit arithmetic differs from one kind of processor to the next.
            self.identity += f"+{digest_features(limit_features(detect_machine().features))}"
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._ends = frozenset(eos_token_ids)
        core = ov.Core()
        properties: dict[str, Any] = {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            **limit_properties(),
        }
        if exact:
            properties |= REFERENCE_PROPERTIES
        self.vocab_size = int(model.output("logits").get_partial_shape()[2].get_length())
        self._model: PagedModel | _WholeModel
        if kv_precision is not None:
            self._model = PagedModel(model, kv_precision, properties)
        else:
            self._model = _WholeModel(model, properties)
        exactly = {**properties, "INFERENCE_PRECISION_HINT": "f32"}
        self._score = core.compile_model(
            _build_score(self.vocab_size), "CPU", exactly
        ).create_infer_request()

    @classmethod
    def load(
        cls,
        folder: Path,
        label: str,
        identity: str,
        *,
        exact: bool = False,
        kv_precision: str | None = None,
    ) -> OpenVinoScorer:
        """Load a prepared model's folder. Raises `EvaluationError` for an encoder."""
        note = read_note(folder)
        if note.get("family") != "decoder":
            raise EvaluationError(f"{label} is an encoder; it predicts no next tokens")
        return cls(
            ov.Core().read_model(folder / "openvino_model.xml"),
            TextTokenizer.load(folder),
            label,
            identity,
            context_length=int(note["context_length"]),
            eos_token_ids=note.get("eos_token_ids", ()),
            exact=exact,
            kv_precision=kv_precision,
        )

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        """See `Scorer`."""
        logits = self._compute_logits(tokens)[:-1]
        ids = find_largest(logits, k)
        wanted = np.concatenate([ids, tokens[1:, None]], axis=1)
        logprobs, _, full = self._look_up(logits, wanted, rows)
        return TopTokens(ids, logprobs[:, :-1], logprobs[:, -1], full)

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> TokenScores:
        """See `Scorer`."""
        logits = self._compute_logits(tokens)[:-1]
        return TokenScores(*self._look_up(logits, ids, rows))

    def generate(self, tokens: TokenArray, most: int) -> Iterator[int]:
        """See `Scorer`."""
        past = 0
        for _ in range(most):
            best = int(self._model.infer(tokens, past)[-1].argmax())
            if best in self._ends:
                return
            yield best
            past += len(tokens)
            tokens = np.array([best], np.int64)

    def forward(self, tokens: TokenArray) -> None:
        """The model's forward pass alone."""
        self._compute_logits(tokens)

    def close(self) -> None:
        """Free the model."""
        del self._model, self._score

    def _compute_logits(self, tokens: TokenArray) -> Logprobs:
        """[T, vocabulary], in memory that the next call overwrites."""
        return self._model.infer(tokens, 0)

    def _look_up(
        self, logits: Logprobs, ids: TokenArray, rows: Sequence[int]
    ) -> tuple[Logprobs, TokenArray, Logprobs]:
        self._score.infer({"logits": logits, "ids": ids}, share_inputs=True)
        normalizer = self._score.get_tensor("normalizer").data
        logprobs = self._score.get_tensor("chosen").data - normalizer
        top = self._score.get_tensor("top").data[:, 0].astype(np.int64)
        chosen = list(rows)
        full = logits[chosen] - normalizer[chosen]
        return logprobs, top, full


class _WholeModel:
    """A stateful decoder: attention sees keys and values as computed, not rounded."""

    def __init__(self, model: ov.Model, properties: dict[str, Any]) -> None:
        compiled = ov.Core().compile_model(model, "CPU", properties)
        self._request = compiled.create_infer_request()

    def infer(self, tokens: TokenArray, past: int) -> Logprobs:
        """See `PagedModel`."""
        if not past:
            self._request.reset_state()
        count = len(tokens)
        self._request.infer(
            {
                "input_ids": tokens[None],
                "attention_mask": np.ones((1, past + count), np.int64),
                "position_ids": np.arange(past, past + count, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_inputs=True,
        )
        logits: Logprobs = self._request.get_tensor("logits").data[0]
        return logits


def find_largest(logits: Logprobs, k: int) -> TokenArray:
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


def _order(logits: Logprobs, ids: TokenArray) -> TokenArray:
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
