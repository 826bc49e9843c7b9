"""A decoder over a paged, quantized KV cache, as served: attention reads rounded keys and values.

A window that is computed at once sees keys and values as floats, which hides the error of an 8-bit
cache. The graph is converted, by OpenVINO's own pass, to the one that GenAI's continuous batching
runs. Here it gives out logits, which GenAI keeps to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op

PAGE_TOKENS = 32
"""Tokens in a page, in OpenVINO's CPU plugin."""
_ROWS = "rows"
"""The input that chooses the tokens whose logits are wanted."""


class PagedModel:
    """Runs one sequence at a time, each on pages of its own."""

    def __init__(self, model: ov.Model, precision: str, properties: dict[str, Any]) -> None:
        """Modifies `model`. `precision` is `u8` or `f16`."""
        # OpenVINO has no public name for this pass; GenAI calls the same one.
        from openvino._offline_transformations import paged_attention_transformation

        paged_attention_transformation(model)
        _choose_rows(model)
        compiled = ov.Core().compile_model(
            model, "CPU", {**properties, "KV_CACHE_PRECISION": precision}
        )
        self._request = compiled.create_infer_request()
        self._caches: dict[str, tuple[Any, list[int]]] = {}
        for port in compiled.inputs:
            name = port.get_any_name()
            if name.startswith(("key_cache.", "value_cache.")):
                page = [size.get_length() for size in list(port.get_partial_shape())[1:]]
                self._caches[name] = (port.get_element_type(), page)
        self._tensors: dict[str, ov.Tensor] = {}
        self._pages = 0

    def infer(
        self,
        tokens: npt.NDArray[np.int64],
        past: int,
        pages: Sequence[int] | None = None,
        *,
        only_last: bool = False,
    ) -> npt.NDArray[np.float32]:
        """The logits after each of `tokens`, [T, vocabulary], or after the last one, in memory that
        the next call overwrites.

        `past` is the number of preceding tokens, whose keys and values are in `pages`, in their
        order; there must be as many pages as these tokens need. Without `pages`, the first ones.
        """
        count = len(tokens)
        if pages is None:
            pages = range(count_pages(past + count))
        if max(pages) >= self._pages:
            self._grow(max(pages) + 1)
        inputs = {
            "input_ids": tokens,
            "position_ids": np.arange(past, past + count, dtype=np.int64),
            "max_context_len": np.array(past + count, np.int32),
            _ROWS: np.arange(count - 1 if only_last else 0, count, dtype=np.int64),
            "past_lens": np.array([past], np.int32),
            "subsequence_begins": np.array([0, count], np.int32),
            "block_indices": np.array(pages, dtype=np.int32),
            "block_indices_begins": np.array([0, len(pages)], np.int32),
        }
        for name, value in inputs.items():
            self._request.set_tensor(name, ov.Tensor(value))
        self._request.infer()
        logits: npt.NDArray[np.float32] = self._request.get_tensor("logits").data[:, 0]
        return logits

    def _grow(self, pages: int) -> None:
        """Allocate twice `pages` pages and copy the existing ones."""
        for name, (kind, page) in self._caches.items():
            tensor = ov.Tensor(kind, ov.Shape([2 * pages, *page]))
            if self._pages:
                tensor.data[: self._pages] = self._tensors[name].data
            self._tensors[name] = tensor
            self._request.set_tensor(name, tensor)
        self._pages = 2 * pages


def _choose_rows(model: ov.Model) -> None:
    """Have the head multiplied with chosen rows alone, as GenAI does: its arithmetic depends on how
    many there are.
    """
    rows = op.parameter([-1], ov.Type.i64, name=_ROWS)
    rows.output(0).set_names({_ROWS})
    head = model.output("logits").get_node().input_value(0).get_node()
    chosen = op.gather(head.input_value(0), rows, op.constant(np.int64(0)))
    head.input(0).replace_source_output(chosen.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def count_pages(tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)
