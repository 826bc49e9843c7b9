"""A decoder in training: computes log-probabilities of some tokens without storing all logits.

The logits of a vocabulary are much larger than a layer's activations, and passing over them takes
longer than computing them. They are therefore computed in parts, in reused memory, and recomputed
in the backward pass from each row's normalizer (as in Hsu et al. 2024, 2410.10989).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

Tensor = Any
"""A `torch.Tensor`."""

PART_BYTES = 32 << 20
"""Bytes of float32 logits in memory at once on a CPU, whose caches are no larger."""
GPU_PART_BYTES = 512 << 20


class Student(nn.Module):  # type: ignore[misc]  # torch's types are not read
    """Wraps a transformers model for causal language modelling, which it trains in place."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model
        if not torch.cuda.is_available():
            # On CPUs, the backward pass of PyTorch's fused attention is slower than plain matrices.
            model.set_attn_implementation("eager")

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        wanted: Tensor,
        hidden: bool = False,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the tokens `wanted` [B (T - 1), n] after each of `tokens` [B, T]
        except the last, and hidden states [layers + 1, B, T, channels] if `hidden`. `positions`
        [B, T] restart where the next text of a window begins. With `rows` [N], only those of the
        B (T - 1) predictions are computed, and `wanted` is [N, n].
        """
        out = self.inner.base_model(
            tokens, position_ids=positions, output_hidden_states=hidden, use_cache=False
        )
        states = out.last_hidden_state[:, :-1].flatten(0, 1)
        if rows is not None:
            states = states[rows]
        head = self.inner.get_output_embeddings()
        found = _ChosenLogProbabilities.apply(states, head.weight, wanted)
        return found, torch.stack(out.hidden_states) if hidden else None


class _ChosenLogProbabilities(torch.autograd.Function):  # type: ignore[misc]
    """log softmax(states @ head^T) at `wanted`: [N, n].

    `states` is [N, channels], `head` [vocabulary, channels]. With g the gradient of the result, the
    gradient of a row's logits is g at its wanted tokens, minus g's sum times its probabilities.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, wanted: Tensor) -> Tensor:
        kind = states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.dtype
        with torch.autocast(kind, enabled=False):
            x, w = states.to(dtype), head.to(dtype)
            normalizers, found = [], []
            for rows, logits in _logits(x, w):
                found.append(logits.gather(1, wanted[rows]))
                largest = logits.amax(dim=1, keepdim=True)
                total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
                normalizers.append(total.log_().add_(largest))
            normalizer = torch.cat(normalizers)
        ctx.save_for_backward(x, w, wanted, normalizer)
        ctx.dtypes = states.dtype, head.dtype
        return torch.cat(found) - normalizer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, w, wanted, normalizer = ctx.saved_tensors
        of_head = torch.zeros(w.shape, device=w.device) if ctx.needs_input_grad[1] else None
        of_states = []
        with torch.autocast(x.device.type, enabled=False):
            for rows, logits in _logits(x, w):
                part = gradient[rows].float()
                logits.sub_(normalizer[rows]).exp_().mul_(-part.sum(dim=1, keepdim=True))
                logits.scatter_add_(1, wanted[rows], part)
                of_logits = logits.to(x.dtype)
                of_states.append(of_logits @ w)
                if of_head is not None:
                    of_head += of_logits.T @ x[rows]
        states_dtype, head_dtype = ctx.dtypes
        return (
            torch.cat(of_states).to(states_dtype),
            None if of_head is None else of_head.to(head_dtype),
            None,
        )


def _logits(x: Tensor, w: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows of `x` and their float32 logits; the next part reuses the memory."""
    rows, vocabulary = len(x), len(w)
    limit = PART_BYTES if x.device.type == "cpu" else GPU_PART_BYTES
    count = max(1, -(-rows * vocabulary * 4 // limit))
    size = max(1, -(-rows // count))
    raw = torch.empty(size, vocabulary, dtype=x.dtype, device=x.device)
    logits = torch.empty(size, vocabulary, device=x.device)
    for at in range(0, max(1, rows), size):  # One empty part of no rows.
        part = x[at : at + size]
        torch.mm(part, w.T, out=raw[: len(part)])
        yield slice(at, at + size), logits[: len(part)].copy_(raw[: len(part)])
