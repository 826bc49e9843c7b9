"""The byte format of cached answers in a store outside this process.

Stored bytes are not trusted: a checksum over the key and the bytes detects damage, other formats
and answers stored under the wrong key.

Answers are not compressed. zlib at its fastest level takes 26 us for an answer of 1.6 KB, both
ways, and 84 us for one of 8 KB; it saves 7 us and 39 us on a network of 1 Gbit/s, and less on a
faster one.
"""

from __future__ import annotations

import hashlib

import msgspec

from thrifty.gateway.cache.exact import Entry, Owner
from thrifty.openai.events import Usage

_MAGIC = b"tc1"
_CHECKSUM_BYTES = 12
_HEAD_BYTES = len(_MAGIC) + _CHECKSUM_BYTES


class _Stored(msgspec.Struct, array_like=True, gc=False):
    deployment: str
    revision: str
    version: str
    replica: str
    usage: Usage | None
    took_s: float
    purge_id: int
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


def encode_entry(key: bytes, entry: Entry) -> bytes:
    """The bytes of an answer stored under `key`. The tenant is only in the key."""
    owner = entry.owner
    payload = _encoder.encode(
        _Stored(
            owner.deployment,
            owner.revision,
            owner.version,
            entry.replica,
            entry.usage,
            entry.took_s,
            entry.purge_id,
            entry.body,
        )
    )
    return _MAGIC + _sum(key, payload) + payload


def decode_entry(key: bytes, tenant: str, data: bytes) -> Entry | None:
    """The answer in `data`; None if it is damaged or was stored under another key."""
    payload = data[_HEAD_BYTES:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : _HEAD_BYTES] != _sum(key, payload):
        return None
    try:
        stored = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return Entry(
        stored.body,
        replica=stored.replica,
        usage=stored.usage,
        owner=Owner(stored.deployment, stored.revision, stored.version, tenant),
        took_s=stored.took_s,
        purge_id=stored.purge_id,
    )


def _sum(key: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_CHECKSUM_BYTES, key=key).digest()
