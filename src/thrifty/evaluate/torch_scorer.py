"""A decoder in PyTorch. Needs the extra `compress`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.evaluate.scorer import TokenScores, TopTokens
from thrifty.evaluate.torch_model import cache_of, load_torch_model
from thrifty.evaluate.windows import TokenArray
from thrifty.text.tokenizer import TextTokenizer


class TorchScorer:
    """Runs a decoder in float32, or another precision, on a GPU if there is one."""

    def __init__(self, folder: Path, label: str, identity: str, *, dtype: str = "float32") -> None:
        model = load_torch_model(folder, label, dtype=dtype)
        import torch

        self._torch = torch
        self.label = label
        self.identity = f"{identity}+torch-{dtype}"
        self.tokenizer = TextTokenizer.load(folder)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.to(self._device).eval()
        self.vocab_size = int(model.config.vocab_size)
        self.context_length = int(model.config.max_position_embeddings)
        ends = model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def rank(self, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        """See `Scorer`."""
        return self._rank(self._compute(tokens), tokens, k, rows)

    def _rank(self, logprobs: Any, tokens: TokenArray, k: int, rows: Sequence[int]) -> TopTokens:
        best = logprobs.topk(k, dim=1)
        target = logprobs.gather(1, self._tensor(tokens[1:, None]))[:, 0]
        return TopTokens(
            best.indices.cpu().numpy(), best.values.cpu().numpy(), target.cpu().numpy(),
            logprobs[list(rows)].cpu().numpy(),
        )  # fmt: skip

    def rank_with_hidden(
        self, tokens: TokenArray, k: int, rows: Sequence[int] = ()
    ) -> tuple[TopTokens, Any]:
        """The result of `rank`, and all hidden states, [layers + 1, T, channels]."""
        with self._torch.inference_mode():
            out = self._model(self._tensor(tokens[None]), output_hidden_states=True)
        logprobs = out.logits[0, :-1].float().log_softmax(dim=1)
        states = self._torch.stack(out.hidden_states)[:, 0].cpu().numpy()
        return self._rank(logprobs, tokens, k, rows), states

    def score(self, tokens: TokenArray, ids: TokenArray, rows: Sequence[int] = ()) -> TokenScores:
        """See `Scorer`."""
        logprobs = self._compute(tokens)
        return TokenScores(
            logprobs.gather(1, self._tensor(ids)).cpu().numpy(),
            logprobs.argmax(dim=1).cpu().numpy().astype(np.int64),
            logprobs[list(rows)].cpu().numpy(),
        )

    def generate(self, tokens: TokenArray, most: int) -> Iterator[int]:
        """See `Scorer`."""
        past: dict[str, Any] = {}
        for _ in range(most):
            with self._torch.inference_mode():
                out = self._model(self._tensor(tokens[None]), use_cache=True, **past)
            past, best = cache_of(out), int(out.logits[0, -1].argmax())
            if best in self._ends:
                return
            yield best
            tokens = np.array([best], np.int64)

    def forward(self, tokens: TokenArray) -> None:
        """The model's forward pass alone."""
        with self._torch.inference_mode():
            self._model(self._tensor(tokens[None]))

    def close(self) -> None:
        """Free the model."""
        del self._model

    def _tensor(self, values: TokenArray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def _compute(self, tokens: TokenArray) -> Any:
        with self._torch.inference_mode():
            logits = self._model(self._tensor(tokens[None])).logits[0, :-1]
            return logits.float().log_softmax(dim=1)
