"""Cache keys: when two requests are identical, and when an answer may be reused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from thrifty.openai.fields import GATEWAY_FIELDS, Endpoint

IRRELEVANT = GATEWAY_FIELDS | {
    "stream", "stream_options", "user", "safety_identifier", "model", "priority",
}  # fmt: skip
"""Fields that change how or when an answer is sent, but not its content. The key covers the model
by its deployment, version and revision."""
KEY_BYTES = 20
_FORM = "2"
"""Changes whenever older answers must not be found any more: those of form 1 may be broken."""

_encode = msgspec.json.Encoder().encode


def make_key(endpoint: Endpoint, served: str, tenant: str, body: Mapping[str, Any]) -> bytes:
    """A hash of everything that determines an answer, and of its tenant. `served` names the
    deployment, the version and its revision.

    Only the order of the request's own fields is without meaning. Answers follow the order of a
    schema's properties, and prompts that of tools and their parameters.
    """
    relevant = {
        name: body[name]
        for name in sorted(body)
        if name not in IRRELEVANT and body[name] is not None
    }
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(f"{_FORM}\0{endpoint}\0{served}\0{tenant}\0".encode() + _encode(relevant))
    return digest.digest()


def is_deterministic(
    endpoint: Endpoint, body: Mapping[str, Any], honours: frozenset[str] | None
) -> bool:
    """Whether the same request produces the same answer again: greedy requests, embeddings and
    rankings do, and so do seeded requests if the engine honours seeds.
    """
    if endpoint in (Endpoint.EMBEDDINGS, Endpoint.RERANK):
        return True
    if endpoint is Endpoint.TOKENIZE:
        return False
    if body.get("temperature") == 0 or body.get("top_k") == 1:
        return True
    return body.get("seed") is not None and honours is not None and "seed" in honours
