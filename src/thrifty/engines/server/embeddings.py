"""Embeddings as the OpenAI dialect gives them: whole or cut, as numbers or as base64."""

from __future__ import annotations

import array
import base64
from collections.abc import Sequence
from typing import Any

from thrifty.engines.server.backend import ModelFacts
from thrifty.openai.errors import bad_request

_FLOAT_BYTES = 4


def check_dimensions(dimensions: int | None, facts: ModelFacts) -> None:
    """Raise a 400 where the model's embeddings cannot have so many dimensions."""
    size, smaller = facts.embedding_size, facts.smaller_sizes
    if dimensions is None or dimensions == size or dimensions in smaller:
        return
    if not smaller:
        why = "and the model does not say that they may be cut"
    elif len(smaller) == size - 1:
        why = "and may be cut to fewer"
    else:
        why = f"and may be cut to {', '.join(map(str, smaller))}"
    raise bad_request(
        f"this model's embeddings have {size} dimensions, {why}; 'dimensions' is {dimensions}.",
        "dimensions",
        "unsupported_parameter",
    )


def describe_embeddings(
    vectors: Sequence[bytes], dimensions: int | None, encoding: str
) -> list[dict[str, Any]]:
    """The list in `data`. `vectors` are little-endian float32; those that are cut to `dimensions`
    get the length 1 again.
    """
    if dimensions is not None and any(len(v) > dimensions * _FLOAT_BYTES for v in vectors):
        vectors = _cut(vectors, dimensions)
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector).decode()
            if encoding == "base64"
            else array.array("f", vector).tolist(),
        }
        for index, vector in enumerate(vectors)
    ]


def _cut(vectors: Sequence[bytes], dimensions: int) -> list[bytes]:
    import numpy as np  # not needed by servers that never cut

    joined = np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1)[:, :dimensions]
    lengths = np.linalg.norm(joined, axis=1, keepdims=True)
    return [row.tobytes() for row in (joined / np.maximum(lengths, 1e-12)).astype("<f4")]
