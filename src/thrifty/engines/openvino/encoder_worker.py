"""An encoder: it embeds texts in batches. A reranker gives logits of pairs instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from thrifty.engines.known_answers import KnownEmbedding, KnownLogit
from thrifty.engines.openvino.messages import Embed, Embedded
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.graphs.arithmetic import limit_properties

MAX_EMBEDDING_TOKENS = 16_384
"""Padded tokens in one embedding batch."""


class EncoderWorker:
    """Runs a compiled graph over texts, in batches of similar length."""

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
        names = {name for port in self._model.inputs for name in port.names}
        self._takes_segments = "token_type_ids" in names

    def warm_up(self) -> int:
        """One embedding; returns its size."""
        return int(self._run([([0] * 8, 8)])[0].size)

    def release_memory(self) -> None:
        """Free what computing takes beside the weights; it is taken again by the next one."""
        self._model.release_memory()

    def embed_known(self, known: Sequence[KnownEmbedding]) -> list[list[float]]:
        """The embeddings of these prompts."""
        return [self._run([(one.prompt, len(one.prompt))])[0].tolist() for one in known]

    def rank_known(self, known: Sequence[KnownLogit]) -> list[float]:
        """The logits of these pairs."""
        return [float(self._run([(one.pair, one.document_at)])[0, 0]) for one in known]

    def embed(self, messages: list[Embed]) -> list[Embedded]:
        """Answers to all `messages`, computed together."""
        flat = [
            (m.job, index, ids, m.document_at[index] if m.document_at else len(ids))
            for m in messages
            for index, ids in enumerate(m.inputs)
        ]
        vectors: dict[tuple[int, int], bytes] = {}
        flat.sort(key=lambda item: len(item[2]))
        while flat:
            count = max(1, min(len(flat), MAX_EMBEDDING_TOKENS // max(1, len(flat[0][2]))))
            while count > 1 and count * len(flat[count - 1][2]) > MAX_EMBEDDING_TOKENS:
                count -= 1
            batch, flat = flat[:count], flat[count:]
            found = self._run([(ids, document_at) for _, _, ids, document_at in batch])
            for (job, index, *_), vector in zip(batch, found, strict=True):
                vectors[job, index] = vector.astype("<f4").tobytes()
        return [
            Embedded(m.job, [vectors[m.job, index] for index in range(len(m.inputs))])
            for m in messages
        ]

    def _run(self, inputs: list[tuple[list[int], int]]) -> Any:
        """What the graph gives for texts, each with the place where a second segment begins."""
        longest = max(len(tokens) for tokens, _ in inputs)
        ids, mask, segments = np.zeros((3, len(inputs), longest), dtype=np.int64)
        for row, (tokens, second_at) in enumerate(inputs):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            segments[row, second_at : len(tokens)] = 1
        given = {"input_ids": ids, "attention_mask": mask}
        if self._takes_segments:
            given["token_type_ids"] = segments
        return self._request.infer(given)[0]
