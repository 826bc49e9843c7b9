"""What goes between a replica's server and its worker comes out as it went in, however it is cut."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.engines.openvino import messages
from thrifty.engines.openvino.messages import (
    Add,
    Cancel,
    Embed,
    Embedded,
    Fatal,
    FromScorer,
    Ready,
    Step,
    ToScorer,
    ToServer,
    ToWorker,
    Unpacker,
    decode_to_server,
    decode_to_worker,
    encode,
)
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.backend import Failure, Grammar, Output, Sampling

JOBS = st.integers(-1, 2**53)
IDS = st.lists(st.integers(0, 2**31 - 1), max_size=20)
FLOATS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 2**40)
TEXTS = st.text(max_size=20)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=COUNTS, min_tokens=COUNTS, temperature=FLOATS, top_p=FLOATS, top_k=COUNTS,
    min_p=FLOATS, presence_penalty=FLOATS, frequency_penalty=FLOATS, repetition_penalty=FLOATS,
    seed=st.integers(0, 2**31 - 1), ignore_eos=st.booleans(), stop_token_ids=IDS.map(tuple),
    logprobs=st.booleans(), grammar=st.none() | st.builds(Grammar, TEXTS, COUNTS),
)  # fmt: skip
OUTPUTS = st.builds(
    Output, JOBS, IDS, st.none() | st.lists(FLOATS, max_size=5),
    st.sampled_from(["", "stop", "length"]), COUNTS,
)  # fmt: skip
TO_WORKER = st.one_of(
    st.builds(Add, JOBS, IDS, SAMPLINGS),
    st.builds(Cancel, JOBS),
    st.builds(Embed, JOBS, st.lists(IDS, max_size=3)),
)
TO_SERVER = st.one_of(
    st.builds(Ready, FLOATS, FLOATS, COUNTS, COUNTS, COUNTS),
    st.builds(Fatal, TEXTS),
    st.builds(
        Step, st.lists(OUTPUTS, max_size=3),
        st.lists(st.builds(Failure, JOBS, TEXTS, TEXTS), max_size=2), COUNTS, COUNTS, FLOATS,
    ),
    st.builds(Embedded, JOBS, st.lists(st.binary(max_size=16), max_size=3), TEXTS),
)  # fmt: skip


def unpack(data: bytes, sizes: list[int]) -> list[bytes]:
    """The messages in `data`, fed in pieces of these sizes and then whatever is left."""
    unpacker = Unpacker()
    found = []
    for size in sizes:
        found += list(unpacker.feed(data[:size]))
        data = data[size:]
    return [*found, *unpacker.feed(data)]


SIZES = st.lists(st.integers(0, 30), max_size=12)


@given(sent=st.lists(TO_WORKER, max_size=4), sizes=SIZES)
def test_messages_to_the_worker_arrive(sent: list[ToWorker], sizes: list[int]) -> None:
    data = b"".join(map(encode, sent))
    assert [decode_to_worker(message) for message in unpack(data, sizes)] == sent


@given(sent=st.lists(TO_SERVER, max_size=4), sizes=SIZES)
def test_messages_to_the_server_arrive(sent: list[ToServer], sizes: list[int]) -> None:
    data = b"".join(map(encode, sent))
    assert [decode_to_server(message) for message in unpack(data, sizes)] == sent


@pytest.mark.parametrize(
    "message_type",
    [t for t in vars(messages).values() if isinstance(t, type) and t.__module__ == messages.__name__
     and issubclass(t, msgspec.Struct)],
)  # fmt: skip
def test_every_message_has_its_direction(message_type: type) -> None:
    sent = {*ToWorker.__args__, *ToScorer.__args__}
    received = {*ToServer.__args__, *FromScorer.__args__}
    assert (message_type in sent) != (message_type in received)


def test_a_message_comes_out_with_its_last_byte() -> None:
    unpacker = Unpacker()
    data = encode(Cancel(7)) + encode(Fatal("x"))
    first = len(encode(Cancel(7)))
    came = [at for at in range(len(data)) if list(unpacker.feed(data[at : at + 1]))]
    assert came == [first - 1, len(data) - 1]


def test_large_messages_pass() -> None:
    vectors = [bytes(1_000_000)] * 5
    data = encode(Embedded(1, vectors))
    (message,) = unpack(data, [65_536] * 80)
    assert decode_to_server(message) == Embedded(1, vectors)


def test_infinite_logprobs_pass() -> None:
    step = Step([Output(1, [2], [-float("inf")])], [], 0, 0, 0.0)
    assert decode_to_server(encode(step)[4:]) == step


def test_length_beyond_reason_is_refused() -> None:
    data = struct.pack("<I", messages.MAX_MESSAGE_BYTES + 1)
    with pytest.raises(ValueError, match=f"a message of {messages.MAX_MESSAGE_BYTES + 1} bytes"):
        list(Unpacker().feed(data))


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (decode_to_worker, encode(Fatal("x"))[4:]),
        (decode_to_server, encode(Cancel(1))[4:]),
        (decode_to_worker, msgspec.msgpack.encode(["Add", 1, "not tokens", {}])),
        (decode_to_worker, b"\xc1"),
        (decode_to_server, b""),
    ],
)
def test_what_is_no_message_is_refused(decode: Any, data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(data)


def test_settings_survive_a_command_line() -> None:
    settings = Settings(
        "/models/ü", "decoder", 2, {"max_batch": 7, "prefix_cache": True}, 9, eos_token_ids=(1, 2)
    )
    text = msgspec.json.encode(msgspec.to_builtins(settings)).decode()
    found = msgspec.convert(msgspec.json.decode(text), Settings)
    assert found == settings
    assert (found.options.max_batch, found.options.prefix_cache) == (7, True)
