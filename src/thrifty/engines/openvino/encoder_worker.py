"""An encoder: it embeds texts in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from thrifty.engines.known_answers import KnownEmbedding
from thrifty.engines.openvino.messages import Embed, Embedded
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.graphs.arithmetic import limit_properties

MAX_EMBEDDING_TOKENS = 16_384
"""Padded tokens in one embedding batch."""


class EncoderWorker:
    """Makes embeddings with a compiled graph, in batches of similar length."""

    def __init__(self, settings: Settings) -> None:
        core = ov.Core()
        path = Path(settings.folder) / "openvino_model.xml"
        properties = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": settings.options.activation_group,
            **limit_properties(),
        }
        self._model = core.compile_model(str(path), "CPU", properties)
        self._request = self._model.create_infer_request()

    def warm_up(self) -> int:
        """One embedding; returns its size."""
        return int(self._run([[0] * 8])[0].size)

    def release_memory(self) -> None:
        """Free what computing takes beside the weights; it is taken again by the next one."""
        self._model.release_memory()

    def embed_known(self, known: Sequence[KnownEmbedding]) -> list[list[float]]:
        """The embeddings of these prompts."""
        return [self._run([one.prompt])[0].tolist() for one in known]

    def embed(self, messages: list[Embed]) -> list[Embedded]:
        """Answers to all `messages`, computed together."""
        flat = [(m.job, index, ids) for m in messages for index, ids in enumerate(m.inputs)]
        vectors: dict[tuple[int, int], bytes] = {}
        flat.sort(key=lambda item: len(item[2]))
        while flat:
            count = max(1, min(len(flat), MAX_EMBEDDING_TOKENS // max(1, len(flat[0][2]))))
            while count > 1 and count * len(flat[count - 1][2]) > MAX_EMBEDDING_TOKENS:
                count -= 1
            batch, flat = flat[:count], flat[count:]
            for (job, index, _), vector in zip(
                batch, self._run([b[2] for b in batch]), strict=True
            ):
                vectors[job, index] = vector.astype("<f4").tobytes()
        return [
            Embedded(m.job, [vectors[m.job, index] for index in range(len(m.inputs))])
            for m in messages
        ]

    def _run(self, inputs: list[list[int]]) -> Any:
        longest = max(map(len, inputs))
        ids = np.zeros((len(inputs), longest), dtype=np.int64)
        mask = np.zeros((len(inputs), longest), dtype=np.int64)
        for row, tokens in enumerate(inputs):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        result = self._request.infer({"input_ids": ids, "attention_mask": mask})
        return result["embeddings"]
