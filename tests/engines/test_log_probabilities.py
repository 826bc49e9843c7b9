"""Log-probabilities as clients are told of them, in both dialects, whole and streamed."""

from __future__ import annotations

import json
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.server.answers import ChunkWriter, build_answer
from thrifty.engines.server.backend import ModelFacts, Output, Ranked, Scores
from thrifty.engines.server.choice import Choice
from thrifty.engines.server.log_probabilities import (
    TokenDetail,
    describe_for_chat,
    describe_for_completion,
    detail_prompt,
)
from thrifty.engines.server.request import parse_completion
from thrifty.types import Family

TOKENIZER = make_tokenizer()
END = 256
FACTS = ModelFacts(Family.DECODER, 4096, (END,))


def answer(prompt: Any, text: str, sizes: list[int], **fields: Any) -> tuple[list[Any], Any]:
    """A completion's chunks and its whole choice, where the answer comes in outputs of `sizes`."""
    request = parse_completion({"prompt": prompt, "max_tokens": 99, **fields}, TOKENIZER, FACTS)
    top = request.sampling.top_logprobs
    prompt_ids, ids = request.prompts[0], [*text.encode(), END]
    choice = Choice(0, request, TOKENIZER)
    writer = ChunkWriter(request, choice, "id-1", 17)
    stream = b""
    for size in cycle(sizes):
        if not ids or choice.finish_reason is not None:
            break
        taken, ids = ids[:size], ids[size:]
        scores = score(prompt_ids[1:], top) if not stream and request.echo_texts else None
        told = score(taken, top)
        output = Output(1, taken, told.logprobs, "" if ids else "stop", 0, told.top, scores)
        stream += writer.write(*choice.feed(output))
    chunks = [json.loads(e[6:])["choices"][0] for e in stream.split(b"\n\n") if e]
    return chunks, json.loads(build_answer(request, [choice], "cmpl-1"))["choices"][0]


def score(ids: list[int], top: int) -> Scores:
    """The token with the next id is the likeliest, then the token itself."""
    ranked: list[Ranked] = [[((i + 1) % 256, -0.5), (i, -1.0)][:top] for i in ids]
    return Scores([-1.0] * len(ids), ranked)


@given(
    prompt=st.text(min_size=1, max_size=8) | st.lists(st.integers(0, 256), min_size=1, max_size=8),
    text=st.text(max_size=12),
    stop=st.lists(st.text(min_size=1, max_size=2), max_size=2),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    top=st.integers(0, 2),
    echo=st.booleans(),
)
def test_offsets_are_places_in_the_text_and_streams_tell_the_same(
    prompt: Any, text: str, stop: list[str], sizes: list[int], top: int, echo: bool
) -> None:
    chunks, whole = answer(prompt, text, sizes, stop=stop, logprobs=top, echo=echo)
    told = whole["logprobs"]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for key in ("tokens", "token_logprobs", "text_offset"):
        assert [one for chunk in chunks for one in chunk["logprobs"][key]] == told[key]
    offsets = told["text_offset"]
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(whole["text"]) for offset in offsets)
    for token, offset in zip(told["tokens"], offsets, strict=True):
        whole_character = not token.startswith("bytes:") and token != "<|end|>"
        if whole_character and "\ufffd" not in whole["text"]:
            assert whole["text"][offset] == token
    assert (told["top_logprobs"] is None) == (top == 0)
    for logprob, ranked in zip(told["token_logprobs"], told["top_logprobs"] or [], strict=False):
        assert (logprob is None) == (ranked is None)
        if ranked is not None:
            assert logprob in ranked.values()
            assert max(ranked.values()) == -0.5


def test_echo_tells_of_the_prompt_and_then_of_the_answer() -> None:
    _, whole = answer("é.", "ab", [9], logprobs=1, echo=True)
    assert whole["text"] == "é.ab"
    assert whole["logprobs"] == {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", ".", "a", "b", "<|end|>"],
        "token_logprobs": [None, -1.0, -1.0, -1.0, -1.0, -1.0],
        "top_logprobs": [
            None,
            {"bytes:\\xaa": -0.5, "bytes:\\xa9": -1.0},
            {"/": -0.5, ".": -1.0},
            {"b": -0.5, "a": -1.0},
            {"c": -0.5, "b": -1.0},
            {"\x01": -0.5, "<|end|>": -1.0},
        ],
        "text_offset": [0, 0, 1, 2, 3, 4],
    }


def test_echo_without_an_answer_tells_of_the_prompt_alone() -> None:
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
    request = parse_completion(body, TOKENIZER, FACTS)
    choice = Choice(0, request, TOKENIZER)
    choice.feed(Output(1, [], [], "length", prompt=Scores([-1.0, -2.0], [[], []])))
    (told,) = json.loads(build_answer(request, [choice], "cmpl-1"))["choices"]
    assert (told["text"], told["finish_reason"]) == ("abc", "length")
    assert told["logprobs"] == {
        "tokens": ["a", "b", "c"], "token_logprobs": [None, -1.0, -2.0], "top_logprobs": None,
        "text_offset": [0, 1, 2],
    }  # fmt: skip


def test_prompt_of_one_token_has_nothing_to_score() -> None:
    details = detail_prompt([97], Scores([], []), TOKENIZER)
    assert details == [TokenDetail(97, None, [], 0)]


def test_of_tokens_that_are_written_alike_the_likeliest_counts() -> None:
    class Alike:
        def token_bytes(self, token_id: int) -> bytes:
            return b"x"

    details = [TokenDetail(3, -2.0, [(1, -0.5), (2, -1.0)], 0)]
    told = describe_for_completion(details, Alike(), 2, 1)  # type: ignore[arg-type]
    assert told["top_logprobs"] == [{"x": -0.5}]


@pytest.mark.parametrize("token", [97, 0xC3, END])
def test_chat_tells_of_likely_tokens_as_of_the_chosen_one(token: int) -> None:
    (told,) = describe_for_chat(
        [TokenDetail(token, -1.0, [(token, -1.0), (98, -2.0)], 0)], TOKENIZER
    )
    first, second = told.pop("top_logprobs")
    assert first == told
    assert told["bytes"] == list(TOKENIZER.token_bytes(token))
    assert second == {"token": "b", "logprob": -2.0, "bytes": [98]}
