"""What goes to vLLM and what comes back, as vLLM 0.32 really wrote it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from thrifty.engines.server.backend import Grammar, Sampling
from thrifty.engines.vllm.wire import (
    EventReader,
    decode_chunk,
    encode_prompt_request,
    encode_request,
    read_prompt_scores,
    read_top,
)

STREAM = (
    b'data: {"request_id":"g-1","usage":null,"output_mode":"tokens","choices":[{"index":0,'
    b'"finish_reason":"length","stop_reason":null,"token_ids":[30],"routed_experts":null,'
    b'"sampling_mask":null,"weight_versions":[{"version":"default","start":0,"end":3}],'
    b'"logprobs":{"content":[{"token_id":30,"logprob":-0.38,"rank":1,"top_logprobs":['
    b'{"token_id":30,"logprob":-0.38,"rank":1},{"token_id":28,"logprob":-1.63,"rank":2},'
    b'{"token_id":284,"logprob":-3.0,"rank":3}]}]}}]}\n\n'
    b'data: {"request_id":"g-1","usage":{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":4}},"output_mode":"tokens","choices":[]}\n\n'
    b"data: [DONE]\n\n"
)


def encode(sampling: Sampling, eos: tuple[int, ...] = (2,), priority: int = 0) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(encode_request("model", [5, 6], sampling, eos, priority))
    return body


def test_request_says_all_that_was_asked() -> None:
    sampling = Sampling(
        max_tokens=9, min_tokens=2, temperature=0.7, top_p=0.5, top_k=40, min_p=0.1,
        presence_penalty=0.2, frequency_penalty=0.3, repetition_penalty=1.1, seed=7, seeded=True,
        stop_token_ids=(3,), logprobs=True, top_logprobs=4, grammar=Grammar('root ::= "a"'),
        salt="tenant", logit_bias=((5, -100.0), (7, 0.5)),
    )  # fmt: skip
    body = encode(sampling, priority=3)
    assert body == {
        "model": "model", "token_ids": [5, 6], "stream": True, "priority": 3,
        "stream_options": {"include_usage": True}, "cache_salt": hashlib.sha256(b"tenant").hexdigest(),
        "sampling_params": {
            "max_tokens": 9, "min_tokens": 2, "temperature": 0.7, "top_p": 0.5, "top_k": 40,
            "min_p": 0.1, "presence_penalty": 0.2, "frequency_penalty": 0.3,
            "repetition_penalty": 1.1, "seed": 7, "ignore_eos": False, "stop_token_ids": [3, 2],
            "detokenize": False, "logprobs": 5, "logit_bias": {"5": -100.0, "7": 0.5},
            "structured_outputs": {"grammar": 'root ::= "a"'},
        },
    }  # fmt: skip


def test_what_vllm_would_refuse_or_need_not_know_is_left_out() -> None:
    greedy = encode(Sampling(max_tokens=1, temperature=1e-60, top_p=0.0))["sampling_params"]
    assert greedy["temperature"] == 0
    assert not {"top_p", "seed", "logprobs", "structured_outputs"} & set(greedy)
    drawn = encode(Sampling(max_tokens=1, top_p=0.0, ignore_eos=True))["sampling_params"]
    assert 0 < drawn["top_p"] < 1e-5
    assert drawn["stop_token_ids"] == []
    assert "cache_salt" not in encode(Sampling(max_tokens=1))
    asked = json.loads(encode_prompt_request("model", [5], Sampling(max_tokens=0, salt="s")))
    assert len(asked["cache_salt"]) == 64
    assert asked["sampling_params"]["prompt_logprobs"] == 0


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_events_are_cut_wherever_the_bytes_are(size: int) -> None:
    found: list[bytes] = []
    reader = EventReader(found.append)
    for start in range(0, len(STREAM), size):
        reader.feed(STREAM[start : start + size])
    assert found[-1] == b"[DONE]"
    first, counts = (decode_chunk(data) for data in found[:-1])
    (choice,) = first.choices
    assert (choice.token_ids, choice.finish_reason) == ([30], "length")
    assert choice.positions is not None
    assert choice.positions[0].logprob == -0.38
    assert read_top(choice.positions, 2) == [[(30, -0.38), (28, -1.63)]]
    assert read_top(choice.positions, 0) is None
    assert counts.cached_tokens == 4


def test_likeliest_do_not_include_a_token_that_was_drawn_against_the_odds() -> None:
    text = (
        b'{"choices":[{"token_ids":[9],"logprobs":{"content":[{"token_id":9,"logprob":-8.0,'
        b'"top_logprobs":[{"token_id":9,"logprob":-8.0},{"token_id":1,"logprob":-0.1},'
        b'{"token_id":2,"logprob":-2.5}]}]}}]}'
    )
    positions = decode_chunk(text).choices[0].positions
    assert positions is not None
    assert read_top(positions, 2) == [[(1, -0.1), (2, -2.5)]]


def test_prompts_log_probabilities() -> None:
    text = (
        b'{"prompt_logprobs":[null,{"3575":{"logprob":-11.7,"rank":3105,"decoded_token":null},'
        b'"29":{"logprob":-0.7,"rank":1,"decoded_token":null}},{"282":{"logprob":-0.3,"rank":1,'
        b'"decoded_token":null}}],"choices":[]}'
    )
    scores = read_prompt_scores(decode_chunk(text), [504, 3575, 282], 1)
    assert scores.logprobs == [-11.7, -0.3]
    assert scores.top == [[(29, -0.7)], [(282, -0.3)]]
    with pytest.raises(ValueError, match="left out"):
        read_prompt_scores(decode_chunk(text), [504, 1, 282], 1)
    with pytest.raises(ValueError, match="gave no"):
        read_prompt_scores(decode_chunk(b"{}"), [504], 1)
