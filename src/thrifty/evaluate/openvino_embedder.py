"""An encoder as OpenVINO IR: the same graph as is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import read_note
from thrifty.evaluate.embedder import Vectors, embed_in_batches
from thrifty.graphs.arithmetic import digest_features, limit_features, limit_properties
from thrifty.graphs.weights import choose_activation_group
from thrifty.text.tokenizer import TextTokenizer


class OpenVinoEmbedder:
    """Runs a graph of `graphs.encoder`.

    `exact` computes in float32 throughout, as a reference should; otherwise the engine computes as
    it does in serving.
    """

    def __init__(
        self,
        model: ov.Model,
        tokenizer: TextTokenizer | None,
        label: str,
        identity: str,
        *,
        context_length: int,
        exact: bool = False,
    ) -> None:
        self.label = label
        group = 0 if exact else choose_activation_group(model)
        arithmetic = f"activations-{group}" if group else "f32"
        self.identity = f"{identity}+{arithmetic}"
        if not exact:
            # 8-bit arithmetic differs from one kind of processor to the next.
            self.identity += f"+{digest_features(limit_features(detect_machine().features))}"
        self._tokenizer = tokenizer
        self.context_length = context_length
        self.width = int(model.output("embeddings").get_partial_shape()[1].get_length())
        properties: dict[str, Any] = {
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
            **limit_properties(),
        }
        if exact:
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        self._request = ov.Core().compile_model(model, "CPU", properties).create_infer_request()

    @classmethod
    def load(
        cls, folder: Path, label: str, identity: str, *, exact: bool = False
    ) -> OpenVinoEmbedder:
        """Load the encoder from a prepared model's folder."""
        return cls(
            ov.Core().read_model(folder / "openvino_model.xml"), TextTokenizer.load(folder), label,
            identity, context_length=int(read_note(folder)["context_length"]), exact=exact,
        )  # fmt: skip

    @property
    def tokenizer(self) -> TextTokenizer:
        """See `Embedder`."""
        assert self._tokenizer is not None, "constructed without a tokenizer"
        return self._tokenizer

    def embed(self, texts: Sequence[list[int]]) -> Vectors:
        """See `Embedder`."""
        return embed_in_batches(texts, self.width, self._run)

    def close(self) -> None:
        """Free the model."""
        del self._request

    def _run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> Vectors:
        self._request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)
        found: Vectors = self._request.get_tensor("embeddings").data
        return found
