"""A decoder as OpenVINO IR: the same graph as is served, run over whole windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import read_note
from thrifty.errors import EvaluationError
from thrifty.evaluate.scorer import Logprobs, TokenScores, TopTokens
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.adapted import read_graph
from thrifty.graphs.arithmetic import (
    REFERENCE_PROPERTIES,
    digest_features,
    limit_features,
    limit_properties,
)
from thrifty.graphs.logits import LogitReader, find_largest
from thrifty.graphs.paged import PagedModel
from thrifty.graphs.weights import choose_activation_group
from thrifty.text.tokenizer import TextTokenizer


class OpenVinoScorer:
    """Runs a prepared decoder."""

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
        self._reader = LogitReader(self.vocab_size, properties)

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
            read_graph(folder),
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
        logits = self._predict(tokens)
        ids = find_largest(logits, k)
        wanted = np.concatenate([ids, tokens[1:, None]], axis=1)
        logprobs, _, full = self._look_up(logits, wanted, rows)
        return TopTokens(ids, logprobs[:, :-1], logprobs[:, -1], full)

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> TokenScores:
        """See `Scorer`."""
        logits = self._predict(tokens)
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
        self._model.infer(tokens, 0)

    def close(self) -> None:
        """Free the model."""
        del self._model, self._reader

    def _predict(self, tokens: TokenArray) -> Logprobs:
        """The logits after each of `tokens` except the last, [T - 1, vocabulary], in memory that
        the next call overwrites.

        The last token is not computed. In an 8-bit cache the keys of a block of tokens share
        scales, so that it would change what is predicted before it in its block.
        """
        count = len(tokens) - 1
        return self._model.infer(tokens[: max(1, count)], 0)[:count]

    def _look_up(
        self, logits: Logprobs, ids: TokenArray, rows: Sequence[int]
    ) -> tuple[Logprobs, TokenArray, Logprobs]:
        logprobs, top, normalizer = self._reader.look_up(logits, ids)
        if len(rows) == len(logits):
            return logprobs, top, logits - normalizer
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
