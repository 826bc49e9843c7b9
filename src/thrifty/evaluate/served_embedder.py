"""An encoder behind a URL, queried with token ids of the reference's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.errors import EvaluationError
from thrifty.evaluate.embedder import Vectors
from thrifty.evaluate.served import PROBE, ServedUrl, fingerprint
from thrifty.text.tokenizer import TextTokenizer

MOST_TEXTS = 64
"""Texts in a request."""


class ServedEmbedder:
    """Queries `/v1/embeddings`. The server must use the same tokenizer."""

    def __init__(self, url: str, tokenizer: TextTokenizer, context_length: int) -> None:
        self.label = url
        self._served = ServedUrl(url)
        self._model = str(self._served.list_models()[0]["id"])
        self.tokenizer = tokenizer
        self.context_length = context_length
        probe = self.embed([tokenizer.encode(PROBE)])
        self.width = probe.shape[1]
        # Another model may be served under the same name later.
        self.identity = f"{self._served.base}#{self._model}@{fingerprint(probe)}"

    def embed(self, texts: Sequence[list[int]]) -> Vectors:
        """See `Embedder`."""
        found: list[list[float]] = []
        for first in range(0, len(texts), MOST_TEXTS):
            batch = list(texts[first : first + MOST_TEXTS])
            body = {"model": self._model, "input": batch, "encoding_format": "float"}
            data = self._served.ask("POST", "/v1/embeddings", body).get("data") or []
            if len(data) != len(batch):
                raise EvaluationError(
                    f"{self.label} returned {len(data)} embeddings for {len(batch)} texts"
                )
            found += [entry["embedding"] for entry in sorted(data, key=lambda one: one["index"])]
        return np.array(found, np.float32)

    def close(self) -> None:
        """Close the connection."""
        self._served.close()
