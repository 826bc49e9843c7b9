"""A model behind a URL whose server returns some log-probabilities of prompts."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import requests

from tests.evaluate.bigram import Bigram, divergence, write_text
from tests.parts import running_echo
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import EvaluationError
from thrifty.evaluate import served
from thrifty.evaluate.divergence import measure_divergence
from thrifty.evaluate.run import record_reference
from thrifty.evaluate.scorer import TokenScores
from thrifty.evaluate.served_scorer import MOST_ALTERNATIVES, MOST_ECHOED, ServedScorer

REFERENCE, SERVED = Bigram(0, label="reference"), Bigram(1, 0.3)


class Handler(BaseHTTPRequestHandler):
    """The part of vLLM's API that is used, with the bigram's log-probabilities."""

    protocol_version = "HTTP/1.1"
    says: dict[str, Any] = {}
    keys: list[str | None] = []

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self.keys.append(self.headers.get("authorization"))
        self.answer(self.says.get("models", {"data": [{"id": "bigram", "max_model_len": 512}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "completion" in self.says:
            self.answer(self.says["completion"])
            return
        places: list[Any] = [None]
        tokens = body["prompt"]
        for last, token in itertools.pairwise(tokens):
            row = self.says.get("model", SERVED).table[last]
            told = {*np.argsort(-row)[: body.get("prompt_logprobs", 0)].tolist(), token}
            places.append({str(t): {"logprob": float(row[t])} for t in told})
        self.answer({"choices": [{"text": "abc", "prompt_logprobs": places}]})

    def answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        busy = self.says.get("busy", 0)
        self.says["busy"] = busy - 1
        self.send_response(503 if busy > 0 else self.says.get("status", 200))
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url() -> Iterator[str]:
    Handler.says, Handler.keys = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def open_served(url: str, **settings: Any) -> ServedScorer:
    return ServedScorer(url, REFERENCE.tokenizer, REFERENCE.vocab_size, **settings)


def test_what_a_server_tells_is_enough_for_most_of_it(url: str, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 3000)
    record = record_reference(REFERENCE, text, tmp_path / "e", window=100, top_k=20)
    found = measure_divergence(open_served(f"{url}/v1/"), record, tmp_path / "r.bin")
    whole = measure_divergence(SERVED, record, tmp_path / "w.bin")
    assert found.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    assert found.same_top_token == whole.same_top_token
    # Missing tokens count as one outcome: the divergence is lower, but not by much.
    true = np.concatenate([divergence(REFERENCE, SERVED, w.tokens) for w in record.read()]).mean()
    assert 0.5 * true < found.kl_divergence.mean <= whole.kl_divergence.mean * 1.0001 < true
    assert found.truncation_tokens == 0


async def test_a_server_of_ours_tells_by_names_what_it_thinks_of_a_prompt() -> None:
    tokenizer = make_tokenizer()
    tokens = np.array(tokenizer.encode("Asmara, żółw 世界 🦙"), np.int64)
    async with running_echo() as url:

        def ask() -> tuple[TokenScores, dict[str, Any]]:
            scorer = ServedScorer(url, tokenizer, tokenizer.vocabulary_size)
            ids = np.tile(np.arange(tokenizer.vocabulary_size), (len(tokens) - 1, 1))
            found = scorer.score(tokens, ids)
            body = {"model": "echo", "prompt": tokens.tolist(), "max_tokens": 1, "echo": True,
                    "logprobs": MOST_ECHOED}  # fmt: skip
            told = requests.post(f"{url}/v1/completions", json=body, timeout=30).json()
            return found, told["choices"][0]["logprobs"]

        found, told = await asyncio.to_thread(ask)
    rows = np.arange(len(tokens) - 1)
    np.testing.assert_allclose(
        found.logprobs[rows, tokens[1:]], told["token_logprobs"][1 : len(tokens)], rtol=1e-6
    )
    known = np.isfinite(found.logprobs).sum(axis=1)
    assert known.tolist() == [len(one) for one in told["top_logprobs"][1 : len(tokens)]]
    assert (np.nanargmax(found.logprobs, axis=1) == found.top).all()


def test_another_model_under_the_same_name_is_another(url: str) -> None:
    first = open_served(url).identity
    assert open_served(url).identity == first
    Handler.says["model"] = Bigram(1, 0.31)
    second = open_served(url).identity
    assert second != first
    answer = {"choices": [{"text": "abc"}]}
    Handler.says["completion"] = answer  # it tells no log-probabilities
    third = open_served(url).identity
    assert len({first, second, third}) == 3
    answer["choices"][0]["text"] = "abd"
    assert open_served(url).identity not in (first, second, third)


def test_it_writes_answers(url: str) -> None:
    assert bytes(open_served(url).generate(np.array([1, 2]), 5)) == b"abc"


def test_a_server_that_is_busy_is_asked_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("thrifty.evaluate.served.time.sleep", waits.append)
    Handler.says = {"busy": 2}
    assert bytes(open_served(url).generate(np.array([1, 2]), 5)) == b"abc"
    assert waits == [0.5, 1.0]
    Handler.says = {"busy": served.ATTEMPTS}
    with pytest.raises(EvaluationError, match="answered 503"):
        open_served(url)


def test_a_key_that_is_not_there_is_told_of(url: str) -> None:
    with pytest.raises(EvaluationError, match="NO_SUCH_KEY contains no key"):
        open_served(url, key_env="NO_SUCH_KEY")


def test_its_key_is_sent(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGRAM_KEY", "sk-1")
    open_served(url, key_env="BIGRAM_KEY")
    assert Handler.keys == ["Bearer sk-1"]


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"models": {"data": []}}, "serves no model"),
        ({"status": 500}, "answered 500"),
        ({"completion": {"choices": [{"text": "a"}]}}, "does not return log-probabilities"),
        (
            {"completion": {"choices": [{"text": "a", "prompt_logprobs": [None]}]}},
            "does not return",
        ),
    ],
)
def test_servers_that_cannot_be_evaluated_are_told_of(
    url: str, says: dict[str, Any], message: str
) -> None:
    Handler.says = says
    with pytest.raises(EvaluationError, match=message):
        open_served(url).score(np.arange(9), np.zeros((8, 1), np.int64))


def test_a_model_that_is_not_served_is_told_of(url: str) -> None:
    with pytest.raises(EvaluationError, match="does not serve 'other'; it has bigram"):
        open_served(url, model="other")
    assert open_served(url, model="bigram").context_length == 512 - 2


def test_a_served_model_is_no_reference(url: str) -> None:
    with pytest.raises(EvaluationError, match=f"only {MOST_ALTERNATIVES} alternatives"):
        open_served(url).rank(np.arange(9), 5, [])
