"""When two requests are the same, and whether an answer may be used again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from thrifty.openai.fields import GATEWAY_FIELDS, Endpoint

IRRELEVANT = GATEWAY_FIELDS | {"stream", "stream_options", "user", "model", "priority"}
"""Fields that change how or when an answer is sent, not what it is. The model is in the key by its
deployment, version and revision."""
KEY_BYTES = 20

_encode = msgspec.json.Encoder(order="sorted").encode


def make_key(endpoint: Endpoint, served: str, tenant: str, body: Mapping[str, Any]) -> bytes:
    """A checksum over everything that decides an answer, and over whose it is. `served` names the
    deployment, the version and its revision.
    """
    relevant = {
        name: value for name, value in body.items() if value is not None and name not in IRRELEVANT
    }
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(f"{endpoint}\0{served}\0{tenant}\0".encode())
    digest.update(_encode(relevant))
    return digest.digest()


def is_deterministic(
    endpoint: Endpoint, body: Mapping[str, Any], honours: frozenset[str] | None
) -> bool:
    """Whether the same request gives the same answer again.

    Greedy requests do, and embeddings, and seeded ones where the engine honours seeds.
    """
    if endpoint is Endpoint.EMBEDDINGS:
        return True
    if endpoint is Endpoint.TOKENIZE:
        return False
    if body.get("temperature") == 0 or body.get("top_k") == 1:
        return True
    return body.get("seed") is not None and honours is not None and "seed" in honours
