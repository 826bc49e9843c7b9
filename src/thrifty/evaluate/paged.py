"""A decoder over a paged KV cache in few bits, as it is served: keys and values are read back rounded.

Windows that are computed whole see keys and values as floats, so that what a cache in 8 bits costs does not
show. The graph is turned into the one that GenAI's continuous batching runs, with its own pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from thrifty.evaluate.windows import TokenArray

BLOCK_TOKENS = 32
"""Of a page, in OpenVINO's CPU plugin."""


class PagedModel:
    """One sequence at a time over pages of its own."""

    def __init__(self, model: ov.Model, precision: str, properties: dict[str, Any]) -> None:
        """`model` is changed. `precision` is `u8` or `f16`."""
        # OpenVINO has no public name for it; GenAI calls the same.
        from openvino._offline_transformations import paged_attention_transformation

        paged_attention_transformation(model)
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

    def infer(self, tokens: TokenArray, past: int) -> npt.NDArray[np.float32]:
        """The logits behind each of `tokens` [T, vocabulary], which follow `past` others, in memory that
        the next call writes to.
        """
        count = len(tokens)
        pages = -(-(past + count) // BLOCK_TOKENS)
        if pages > self._pages:
            self._grow(pages)
        inputs = {
            "input_ids": tokens,
            "position_ids": np.arange(past, past + count, dtype=np.int64),
            "max_context_len": np.array(past + count, np.int32),
            "past_lens": np.array([past], np.int32),
            "subsequence_begins": np.array([0, count], np.int32),
            "block_indices": np.arange(pages, dtype=np.int32),
            "block_indices_begins": np.array([0, pages], np.int32),
        }
        for name, value in inputs.items():
            self._request.set_tensor(name, ov.Tensor(value))
        self._request.infer()
        logits: npt.NDArray[np.float32] = self._request.get_tensor("logits").data[:, 0]
        return logits

    def _grow(self, pages: int) -> None:
        """Room for so many pages and as many again, with what is in them already."""
        for name, (kind, page) in self._caches.items():
            tensor = ov.Tensor(kind, ov.Shape([2 * pages, *page]))
            if self._pages:
                tensor.data[: self._pages] = self._tensors[name].data
            self._tensors[name] = tensor
            self._request.set_tensor(name, tensor)
        self._pages = 2 * pages
