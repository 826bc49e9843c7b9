"""Replays cached answers: under another id, whole or as a stream.

Only answers that `can_replay` accepts are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from thrifty.openai.events import encode_event
from thrifty.openai.fields import Endpoint
from thrifty.openai.stream_options import StreamOptions

ID_MARK = b"\x00id\x00"
"""Stands for an answer's id; these bytes never occur in JSON."""


class _Message(msgspec.Struct):
    tool_calls: list[dict[str, Any]] | None = None


class _ChatChoice(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0)]
    message: _Message
    finish_reason: str
    error: Any = None


class _TextChoice(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0)]
    text: str
    finish_reason: str
    error: Any = None


class _ChatAnswer(msgspec.Struct):
    object: Literal["chat.completion"]
    choices: list[_ChatChoice]
    id: str = ""
    error: Any = None


class _TextAnswer(msgspec.Struct):
    object: Literal["text_completion"]
    choices: list[_TextChoice]
    id: str = ""
    error: Any = None


class _Embeddings(msgspec.Struct):
    object: Literal["list"]
    data: list[msgspec.Raw]


class _Ranking(msgspec.Struct):
    results: list[msgspec.Raw]


_decode_ranking = msgspec.json.Decoder(_Ranking).decode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode
_decode_choices: dict[Endpoint, Callable[[bytes], _ChatAnswer | _TextAnswer]] = {
    Endpoint.CHAT: msgspec.json.Decoder(_ChatAnswer).decode,
    Endpoint.COMPLETIONS: msgspec.json.Decoder(_TextAnswer).decode,
}


def can_replay(body: bytes, endpoint: Endpoint, count: int) -> bool:
    """Whether `body` is a whole answer of an endpoint, with `count` choices, embeddings or
    results, none of which failed.
    """
    try:
        body.decode()
        if endpoint is Endpoint.EMBEDDINGS:
            return len(_decode_embeddings(body).data) == count
        if endpoint is Endpoint.RERANK:
            return len(_decode_ranking(body).results) == count
        answer = _decode_choices[endpoint](body)
        msgspec.json.decode(body)  # as a replay does: numbers out of range fail only here
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if any(one.error or one.finish_reason == "error" for one in answer.choices) or answer.error:
        return False  # as servers in front of others tell of them
    return sorted([choice.index for choice in answer.choices]) == list(range(count))


def count_answers(endpoint: Endpoint, body: Mapping[str, Any]) -> int:
    """How many choices, embeddings or results a valid request asks for."""
    if endpoint is Endpoint.CHAT:
        return int(body.get("n") or 1)
    if endpoint is Endpoint.RERANK:
        return min(len(body["documents"]), body.get("top_n") or len(body["documents"]))
    texts = body.get("input" if endpoint is Endpoint.EMBEDDINGS else "prompt")
    several = isinstance(texts, list) and not isinstance(texts[0], int)
    return (len(texts or ()) if several else 1) * int(body.get("n") or 1)


def cut_id(body: bytes) -> tuple[bytes, list[bytes]]:
    """The prefix of the body's id, and the body in pieces around the id."""
    try:
        answer_id = msgspec.json.decode(body, type=_HasId).id
    except msgspec.MsgspecError:
        answer_id = ""
    if not answer_id:
        return b"", [body]
    return answer_id.partition("-")[0].encode(), body.split(answer_id.encode(), 1)


class _HasId(msgspec.Struct):
    id: str = ""


def make_chunks(answer: dict[str, Any], options: StreamOptions) -> list[bytes]:
    """An answer's chunks with `ID_MARK` in place of its id."""
    chat = answer.get("object") == "chat.completion"
    base = {
        "id": "MARK",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": answer.get("created", 0),
        "model": answer.get("model", ""),
    }
    usage = answer.get("usage")
    counts: dict[str, Any] = {}
    if options.continuous and usage:
        counts = {"usage": usage}
    elif options.usage:
        counts = {"usage": None}

    def chunk(**fields: Any) -> bytes:
        return encode_event({**base, **fields}).replace(b'"id":"MARK"', b'"id":"%b"' % ID_MARK, 1)

    def choice_chunk(choice: dict[str, Any], **fields: Any) -> bytes:
        entry = {"index": choice["index"], "logprobs": None, "finish_reason": None, **fields}
        return chunk(choices=[entry], **counts)

    chunks = []
    for choice in answer.get("choices") or ():
        reason = choice.get("finish_reason")
        if not chat:
            chunks.append(
                choice_chunk(
                    choice, text=choice.get("text", ""), logprobs=choice.get("logprobs"),
                    finish_reason=reason,
                )
            )  # fmt: skip
            continue
        message = choice.get("message") or {}
        chunks.append(choice_chunk(choice, delta={"role": "assistant", "content": ""}))
        deltas = [{k: v for k, v in message.items() if k not in ("role", "tool_calls") and v}]
        deltas += [
            {"tool_calls": [{"index": index, **call}]}
            for index, call in enumerate(message.get("tool_calls") or ())
        ]
        logprobs = choice.get("logprobs")
        for delta in filter(None, deltas):
            chunks.append(choice_chunk(choice, delta=delta, logprobs=logprobs))
            logprobs = None
        chunks.append(choice_chunk(choice, delta={}, logprobs=logprobs, finish_reason=reason))
    if options.usage and usage:
        chunks.append(chunk(choices=[], usage=usage))
    return chunks
