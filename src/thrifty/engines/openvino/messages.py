"""What goes between a replica's server and its processes: msgpack, each message after its length."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from thrifty.engines.server.backend import Failure, Output, Ranked, Sampling

_LENGTH = struct.Struct("<I")
MAX_MESSAGE_BYTES = 512 * 1024 * 1024


class Add(msgspec.Struct, tag=True, array_like=True):
    """Generate. `job` is the server's number for it; above `priority` 0 it is background work."""

    job: int
    prompt: list[int]
    sampling: Sampling
    priority: int = 0
    resumed: bool = False
    """Whether some of its answer has been told already."""


class Cancel(msgspec.Struct, tag=True, array_like=True):
    """Stop generating."""

    job: int


class Embed(msgspec.Struct, tag=True, array_like=True):
    """Make one embedding for each input, or one logit where the model is a reranker."""

    job: int
    inputs: list[list[int]]
    document_at: list[int] = []
    """Of pairs of a query and a document: where the document's segment begins in each input."""


class Park(msgspec.Struct, tag=True, array_like=True):
    """Give back memory: nobody asks."""


class Parked(msgspec.Struct, tag=True, array_like=True):
    """Memory was given back."""


class Ready(msgspec.Struct, tag=True, array_like=True):
    """The model is loaded and has generated something."""

    load_s: float
    warm_up_s: float
    kv_bytes: int
    kv_tokens: int
    embedding_size: int


class Fatal(msgspec.Struct, tag=True, array_like=True):
    """The worker cannot go on."""

    message: str


class Step(msgspec.Struct, tag=True, array_like=True):
    """What one generation step gave, and how busy the worker is after it."""

    outputs: list[Output]
    failures: list[Failure]
    running: int
    waiting: int
    kv_usage: float
    facts: dict[str, float] = {}
    """What else the server tells of its load."""


class Embedded(msgspec.Struct, tag=True, array_like=True):
    """Embeddings or logits as little-endian float32, or why there are none."""

    job: int
    vectors: list[bytes]
    error: str = ""


class Score(msgspec.Struct, tag=True, array_like=True):
    """A prompt, or more tokens of its answer, whose log-probabilities are wanted."""

    job: int
    tokens: list[int]
    prompt: bool
    """Whether those of the prompt are wanted, too, behind its first token."""
    top: int
    """How many of the likeliest tokens are wanted in each place."""
    most: int
    """How long the sequence may become."""
    last: bool = False
    """Whether it is whole now."""


class Scored(msgspec.Struct, tag=True, array_like=True):
    """The log-probabilities of the next tokens of a sequence, in their order."""

    job: int
    logprobs: list[float]
    top: list[Ranked]


class Unscored(msgspec.Struct, tag=True, array_like=True):
    """A sequence whose log-probabilities cannot be had."""

    job: int
    message: str


ToWorker = Add | Cancel | Embed | Park
ToServer = Ready | Fatal | Step | Embedded | Parked
ToScorer = Score | Cancel
FromScorer = Scored | Unscored | Fatal

_encoder = msgspec.msgpack.Encoder()
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_server = msgspec.msgpack.Decoder(ToServer).decode
decode_to_scorer = msgspec.msgpack.Decoder(ToScorer).decode
decode_from_scorer = msgspec.msgpack.Decoder(FromScorer).decode


def encode(message: ToWorker | ToServer | ToScorer | FromScorer) -> bytes:
    """One message, its length before it."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Puts messages together from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Whole messages, as far as `data` completes them. Raises `ValueError` on nonsense."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            message = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield message


def first_line(error: Exception) -> str:
    """What is told of an error that is ours."""
    return str(error).strip().partition("\n")[0][:500]


def last_line(error: Exception) -> str:
    """The engine's messages begin with source positions; what is wrong comes last."""
    text = str(error).strip().rpartition("\n")[2]
    return text.rpartition(".cc:")[2].partition(": ")[2][:500] or text[:500]
