"""An encoder behind a URL, asked by token ids: the tokenizer is the reference's, and must be the server's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import requests

from thrifty.engines.server.text import TextTokenizer
from thrifty.errors import EvaluationError
from thrifty.evaluate.embedder import Vectors

TIMEOUT_S = 600.0
MOST_TEXTS = 64
"""In one request."""


class ServedEmbedder:
    """Asks `/v1/embeddings`."""

    def __init__(self, url: str, tokenizer: TextTokenizer, context_length: int) -> None:
        self.label = url
        self._url = url.rstrip("/").removesuffix("/v1")
        self._session = requests.Session()
        served = self._ask("GET", "/v1/models")["data"]
        if not served:
            raise EvaluationError(f"{url} serves no model")
        self._model = str(served[0]["id"])
        self.identity = f"{self._url}#{self._model}"
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.width = self.embed([tokenizer.encode("a")]).shape[1]

    def embed(self, texts: Sequence[list[int]]) -> Vectors:
        """See `Embedder`."""
        found: list[list[float]] = []
        for first in range(0, len(texts), MOST_TEXTS):
            batch = list(texts[first : first + MOST_TEXTS])
            body = {"model": self._model, "input": batch, "encoding_format": "float"}
            data = self._ask("POST", "/v1/embeddings", body).get("data") or []
            if len(data) != len(batch):
                raise EvaluationError(
                    f"{self.label} gave {len(data)} embeddings of {len(batch)} texts"
                )
            found += [entry["embedding"] for entry in sorted(data, key=lambda one: one["index"])]
        return np.array(found, np.float32)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            reply = self._session.request(method, self._url + path, json=body, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise EvaluationError(f"{self._url} cannot be reached: {error}") from None
        if reply.status_code != 200:
            raise EvaluationError(
                f"{self._url}{path} answered {reply.status_code}: {reply.text[:300]}"
            )
        try:
            found: dict[str, Any] = reply.json()
        except ValueError:
            raise EvaluationError(f"{self._url}{path} did not answer with JSON") from None
        return found
