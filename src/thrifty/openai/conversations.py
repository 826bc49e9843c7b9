"""Which conversation a request belongs to, and which version of a deployment answers it.

A conversation is what a client says it is (the header `x-thrifty-conversation`, or `session_id` in
the field `metadata`), or else what its requests have in common: the tenant, `user`, and the
messages up to the first one of the user. Its id is a hash, so that it can be logged without its
text, with a MAC, so that a client may send back the id it was given and stay in its conversation.

Versions are chosen by weighted rendezvous hashing (Thaler and Ravishankar 1998; the weighted form
by Schindelhauer and Schomaker, 2005): a conversation gives each version the score
-weight / ln(u), with u a uniform hash of the two. The greatest score wins. A version wins in
proportion to its weight, and a change of one weight moves conversations to or from that version only.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import log
from typing import Any

import msgspec

from thrifty.openai.base32 import ALPHABET
from thrifty.openai.fields import Endpoint, read_user

PREFIX = "conv-"
HASH_CHARS, MAC_CHARS = 20, 7
ID_CHARS = len(PREFIX) + HASH_CHARS + MAC_CHARS
"""32, which is what the request log's column holds."""
PROMPT_CHARS = 256
"""So much of a completion's prompt (characters or tokens) tells its conversation."""

_LETTERS = bytes(ord(ALPHABET[byte & 31]) for byte in range(256))
"""Each byte of a hash gives one character, by its lower five bits."""


class Conversations:
    """Makes and recognizes ids of conversations. Any thread may use it.

    `secret` (16 to 64 bytes) is shared by all workers of a service. The hashes are keyed with it,
    so nobody without it can test which text a conversation began with.
    """

    def __init__(self, secret: bytes) -> None:
        if not 16 <= len(secret) <= 64:
            raise ValueError(f"the secret has {len(secret)} bytes; it must have 16 to 64")
        self._hash = blake2b(key=secret, digest_size=HASH_CHARS, person=b"conversation")
        self._mac = blake2b(key=secret, digest_size=MAC_CHARS, person=b"conversation-mac")

    def identify(
        self, tenant: str, header: bytes | None, endpoint: Endpoint, body: Mapping[str, Any]
    ) -> str:
        """The id of a request's conversation.

        `header` is the value of `x-thrifty-conversation`, None or empty where there is none;
        `body` is the request's JSON object, which need not be valid otherwise. Never raises.
        """
        if not header and body.get("metadata") is not None:
            header = _read_session(body["metadata"])
        if header:
            given = header.decode("latin-1")
            if self.is_ours(given, tenant):
                return given
            return self._make_id(tenant, b"header\0" + header)
        return self._make_id(tenant, b"%b\0%b" % (endpoint.encode(), _read_key(endpoint, body)))

    def is_ours(self, text: str, tenant: str) -> bool:
        """Whether `text` is the id of a conversation of this tenant."""
        if len(text) != ID_CHARS or not text.startswith(PREFIX) or not text.isascii():
            return False
        hashed, mac = text[len(PREFIX) : -MAC_CHARS], text[-MAC_CHARS:]
        return hmac.compare_digest(mac, self._make_mac(_encode(tenant), hashed.encode()))

    def _make_id(self, tenant: str, key: bytes) -> str:
        tenant_bytes = _encode(tenant)
        state = self._hash.copy()
        state.update(b"%d\0%b%b" % (len(tenant_bytes), tenant_bytes, key))
        hashed = state.digest().translate(_LETTERS)
        return f"{PREFIX}{hashed.decode()}{self._make_mac(tenant_bytes, hashed)}"

    def _make_mac(self, tenant: bytes, hashed: bytes) -> str:
        state = self._mac.copy()
        state.update(hashed + tenant)  # the hash always has the same length
        return state.digest().translate(_LETTERS).decode()


def read_hash(conversation_id: str) -> str:
    """The hash in the id of a conversation."""
    return conversation_id[len(PREFIX) : -MAC_CHARS]


def choose_version(conversation_id: str, versions: Sequence[tuple[str, float]]) -> list[str]:
    """The labels of a deployment's versions in the order in which they should answer.

    `versions` holds labels and weights (at least 0, finite; relative to each other). Those without
    weight are left out. The order depends on nothing but the arguments' contents.
    """
    if len(versions) == 1:
        label, weight = versions[0]
        return [label] if weight > 0 else []
    scores = []
    conversation = conversation_id.encode()
    for label, weight in versions:
        if weight > 0:
            digest = blake2b(b"%b\0%b" % (conversation, label.encode()), digest_size=8).digest()
            # 52 bits, so that u is a number strictly between 0 and 1.
            u = ((int.from_bytes(digest) >> 12) + 0.5) * 2.0**-52
            scores.append((weight / log(u), label))
    scores.sort()
    return [label for _, label in scores]


def _read_key(endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
    """What a conversation's requests have in common, as unambiguous bytes."""
    if endpoint is Endpoint.CHAT:
        parts = _read_opening(body.get("messages"))
    elif endpoint is Endpoint.COMPLETIONS:
        parts = _read_beginning(body.get("prompt"))
    elif endpoint is Endpoint.RERANK:
        parts = body.get("query"), body.get("documents")
    else:
        parts = body.get("input", body.get("prompt", body.get("messages")))
    key = (read_user(body), parts)
    try:
        return msgspec.json.encode(key)
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError, OverflowError):
        return _encode(repr(key))  # such as half of a surrogate pair


def _read_session(tags: Any) -> bytes | None:
    """The conversation that the tags of a request name, as a header would; None if they do not."""
    session = tags.get("session_id") if isinstance(tags, dict) else None
    if not isinstance(session, str):
        return None
    # What fits a header is the same conversation as in the header.
    return _encode(session) if session.isascii() else b"utf-8\0" + _encode(session)


def _read_opening(messages: Any) -> Any:
    """Role and content of each message up to and including the user's first one."""
    if not isinstance(messages, list):
        return messages
    parts = []
    for message in messages:
        if not isinstance(message, dict):
            parts.append(message)
            continue
        role = message.get("role")
        parts += (role, message.get("content"))
        if role == "user":
            break
    return parts


def _read_beginning(prompt: Any) -> Any:
    """The first characters or tokens of a prompt, or of each prompt of a batch."""
    if isinstance(prompt, str):
        return prompt[:PROMPT_CHARS]
    if isinstance(prompt, list):
        return [
            each[:PROMPT_CHARS] if isinstance(each, str | list) else each
            for each in prompt[:PROMPT_CHARS]
        ]
    return prompt


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
