"""The ids of responses: made by the gateway, ordered by time, and recognized without a database.

    chatcmpl-  01c4xkz9m2p4e  7rq2v8da
    prefix     number         MAC over tenant and number

The number has 63 bits, so that it fits a database's BIGINT: 41 bits of milliseconds since 2020,
10 bits for the node (the worker process, see `db/nodes.py`) and 12 bits of sequence. The MAC is a
keyed BLAKE2b of 40 bits. It tells a tenant's own ids from all other text; it hides nothing.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from hashlib import blake2b

import msgspec

from thrifty.openai.base32 import ALPHABET, PAIRS, decode, encode

EPOCH_S = 1_577_836_800
"""2020-01-01 00:00 UTC. The 41 bits last until 2089; then the numbers start over."""
NODES = 1024
NUMBER_CHARS, MAC_CHARS = 13, 8
ID_CHARS = NUMBER_CHARS + MAC_CHARS

_EPOCH_MS = EPOCH_S * 1000
_MS_MASK = (1 << 41) - 1
_SEQUENCES = 4096
_MAC_LETTERS = bytes(ord(ALPHABET[byte & 31]) for byte in range(256))
"""Each byte of the hash gives one character, by its lower five bits."""
_MAX_TENANTS = 4096
"""Prepared hash states are kept for so many tenants."""


class ResponseId(msgspec.Struct, frozen=True, gc=False):
    """The id of one response. `text` has no prefix: `f"chatcmpl-{text}"` is what clients see."""

    number: int
    text: str


class ResponseIds:
    """Makes and recognizes ids. One object makes all ids of a process; any thread may use it.

    `secret` (16 to 64 bytes) is shared by all workers of a service, `node` (0 to 1023) is this
    worker's alone. `clock` gives seconds since 1970.
    """

    def __init__(self, secret: bytes, node: int, clock: Callable[[], float] = time.time) -> None:
        if not 16 <= len(secret) <= 64:
            raise ValueError(f"the secret has {len(secret)} bytes; it must have 16 to 64")
        self._keyed = blake2b(key=secret, digest_size=MAC_CHARS, person=b"response-id")
        self._clock = clock
        self._states: dict[str, blake2b] = {}
        self._lock = threading.Lock()
        self._ms = 0
        self._head_number, self._head = -1, ""
        # Workers that share a node by accident (see `db/nodes.py`) start at different places.
        self._first = self._sequence = secrets.randbelow(_SEQUENCES // 2)
        self._node_bits = _check_node(node) << 12

    @property
    def node(self) -> int:
        """The node in the numbers that are made now."""
        return self._node_bits >> 12

    @node.setter
    def node(self, node: int) -> None:
        with self._lock:
            self._node_bits = _check_node(node) << 12
            self._ms += 1  # a smaller node must not make the next number smaller
            self._sequence = self._first

    def new(self, tenant: str) -> ResponseId:
        """A new id for a tenant's response. Its number is greater than all before it.

        That also holds when the clock is set back, and when there are more than 4,096 ids in a
        millisecond: the numbers then run ahead of the clock.
        """
        with self._lock:
            ms = int(self._clock() * 1000) - _EPOCH_MS
            if ms > self._ms:
                self._ms = ms
                self._sequence = sequence = self._first
            else:
                sequence = self._sequence + 1
                if sequence == _SEQUENCES:
                    self._ms += 1
                    sequence = 0
                self._sequence = sequence
            number = (self._ms & _MS_MASK) << 22 | self._node_bits | sequence
            # The first seven characters stay the same for a quarter of a second.
            if number >> 30 != self._head_number:
                self._head_number, self._head = number >> 30, encode(number >> 30, 7)
            head = self._head
        return ResponseId(
            number,
            f"{head}{PAIRS[number >> 20 & 1023]}{PAIRS[number >> 10 & 1023]}{PAIRS[number & 1023]}"
            f"{self._make_mac(tenant, number)}",
        )

    def parse(self, text: str, tenant: str) -> int | None:
        """The number of an id that this service made for `tenant`, with or without its prefix.

        None for everything else. Takes text from outside; never raises.
        """
        number = read_number(text)
        if number is None:
            return None
        expected = self._make_mac(tenant, number)
        return number if hmac.compare_digest(text[-MAC_CHARS:], expected) else None

    def find_number(self, text: str, tenant: str | None) -> int | None:
        """As `parse`; without a tenant (None), the number of anybody's id, whose MAC cannot be
        checked: for callers who may see the rows of all tenants.
        """
        return read_number(text) if tenant is None else self.parse(text, tenant)

    def write(self, number: int, tenant: str) -> str:
        """The id, without a prefix, of the response with this number."""
        return f"{encode(number, NUMBER_CHARS)}{self._make_mac(tenant, number)}"

    def _make_mac(self, tenant: str, number: int) -> str:
        state = self._states.get(tenant)
        if state is None:
            if len(self._states) >= _MAX_TENANTS:
                self._states.clear()
            state = self._keyed.copy()
            state.update(tenant.encode("utf-8", "surrogatepass"))
            self._states[tenant] = state
        state = state.copy()
        # The number always has eight bytes, so no two pairs of tenant and number look the same.
        state.update(number.to_bytes(8))
        return state.digest().translate(_MAC_LETTERS).decode()


def read_number(text: str) -> int | None:
    """The number in what looks like an id, with or without its prefix; None for everything else.
    The MAC is not checked. Takes text from outside; never raises.
    """
    text = text[-ID_CHARS - 32 :].rpartition("-")[2]
    if len(text) != ID_CHARS or not text.isascii():
        return None
    number = decode(text[:NUMBER_CHARS])
    return None if number is None or number >> 63 else number


def read_time_s(number: int) -> float:
    """When an id was made, in seconds since 1970, to the millisecond."""
    return EPOCH_S + (number >> 22) / 1000


def _check_node(node: int) -> int:
    if not 0 <= node < NODES:
        raise ValueError(f"the node is {node}; it must be 0 to {NODES - 1}")
    return node
