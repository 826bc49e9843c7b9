"""Token counts of answers whose server tells none: estimated from their text."""

from __future__ import annotations

from typing import Any

import msgspec

from thrifty.gateway.forwarding.failures import ReplicaError
from thrifty.gateway.state.call import Call
from thrifty.gateway.state.estimate import TOKENS_PER_BYTE
from thrifty.openai.events import TEXT_FIELDS, Usage, parse_usage
from thrifty.openai.fields import Endpoint

_EVENTS = (b"data:", b"event:", b"id:", b":")


class _Answer(msgspec.Struct):
    choices: list[Any] | None = None
    data: msgspec.Raw | None = None
    results: msgspec.Raw | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def estimate_usage(call: Call, answer_tokens: int) -> Usage:
    """The counts of a request whose answer has so many tokens; its size tells its prompt's."""
    body = call.exchange.body
    prompt, _ = call.placed.version.estimator.estimate(call.admitted.body, len(body))
    return Usage(prompt, answer_tokens)


def read_usage(call: Call, data: bytes) -> Usage | None:
    """The counts of a whole answer, estimated where it tells none. None where none are due: of text
    that was only tokenized, and of events that are called JSON, which some clients read. Raises
    `ReplicaError` for a status 200 with an error, a page, or nothing.
    """
    told = parse_usage(data)[0]
    if told is not None or call.endpoint is Endpoint.TOKENIZE or data.startswith(_EVENTS):
        return told
    try:
        answer = _decode_answer(data)
        size = _measure(answer.choices or [])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ReplicaError(200, data) from None
    if answer.choices is None and answer.data is None and answer.results is None:
        raise ReplicaError(200, data)
    return estimate_usage(call, round(size * TOKENS_PER_BYTE))


def _measure(value: Any, *, is_text: bool = False) -> int:
    """The bytes of generated text in a part of an answer."""
    if isinstance(value, str):
        return len(value.encode()) if is_text else 0
    if isinstance(value, list):
        return sum(_measure(item, is_text=is_text) for item in value)
    if isinstance(value, dict):
        return sum(
            _measure(item, is_text=name in TEXT_FIELDS)
            for name, item in value.items()
            if name != "logprobs"
        )
    return 0
