"""Answers that a schema binds, on the real engine: they satisfy it, and others go on meanwhile."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openvino_genai as genai
import pytest

from tests.artifacts.models import Llama
from tests.engines.biased import END, serving, train_tokenizer, write_biased_model
from tests.engines.random_schemas import Maker, Schema, judge
from tests.engines.test_prepare import prepare, put
from tests.parts import ask
from tests.test_house import ROOT
from thrifty.artifacts import Store
from thrifty.engines.openvino.grammars import Grammars
from thrifty.engines.server.backend import Grammar
from thrifty.http.client import HttpClient
from thrifty.http.origin import parse_origin

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A model that writes at random, and its end of an answer."""
    texts = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = train_tokenizer(texts, 3000)
    end = tokenizer.token_to_id(END)
    folder = tmp_path_factory.mktemp("biased")
    store = Store(folder / "models")
    llama = Llama(
        vocab=tokenizer.get_vocab_size(), head_dim=32, kv_heads=1, heads=1, hidden=32, tied=False
    )
    _, prepared = prepare(store, put(store, llama, tokenizer=tokenizer, eos_token_id=end), "int8")
    write_biased_model(prepared, folder / "model", end)
    return folder / "model", end


def bind(schema: Schema) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}


class Client:
    """Asks a server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = HttpClient()

    async def post(self, **body: Any) -> tuple[int, Any]:
        """The status and the body of an answer."""
        whole = {"model": "m", "messages": HI, "max_tokens": 2000, **body}
        reply = await ask(self.http, self.url, json.dumps(whole).encode(), CHAT)
        return reply.status, reply.json()

    async def judge(self, schema: Schema, seed: int) -> str:
        """What comes of a schema."""
        status, answer = await self.post(response_format=bind(schema), seed=seed)
        return judge(schema, status, answer)


@pytest.mark.parametrize(("kind", "count"), [("any", 60), ("enforced", 30), ("strict", 30)])
async def test_every_answer_satisfies_its_schema_or_it_is_refused(
    model: tuple[Path, int], kind: str, count: int
) -> None:
    """A sample; `benchmarks/schemas.py` takes thousands."""
    makers = [Maker(seed) for seed in range(count)]
    made = [
        {"any": maker.any_schema, "enforced": maker.enforced, "strict": maker.strict}[kind]()
        for maker in makers
    ]
    schemas = [schema for schema in made if isinstance(schema, dict)]
    async with serving(*model) as url:
        client = Client(url)
        verdicts = await asyncio.gather(
            *(client.judge(schema, seed) for seed, schema in enumerate(schemas))
        )
        client.http.close()
    allowed = {"valid", "cut", "refused"} if kind == "any" else {"valid", "cut"}
    wrong = [(s, v) for s, v in zip(schemas, verdicts, strict=True) if v not in allowed]
    assert not wrong
    assert verdicts.count("valid") > count / 3


HEAVY = {
    "type": "object",
    "properties": {name: {"type": "string", "pattern": f"^{name}([a-z ]+[A-Z0-9]){{1,90}}$"} for name in "abcdef"},
}  # fmt: skip


async def test_another_stream_goes_on_while_a_grammar_is_compiled(model: tuple[Path, int]) -> None:
    async with serving(*model) as url:
        client = Client(url)
        events = 0

        def count(data: bytes) -> None:
            nonlocal events
            events += data.count(b"data: ")

        async def stream() -> None:
            body = {
                "model": "m",
                "messages": HI,
                "max_tokens": 8000,
                "ignore_eos": True,
                "stream": True,
            }
            answer = await client.http.open(
                parse_origin(url), "POST", CHAT, headers=b"content-type: application/json\r\n",
                body=json.dumps(body).encode(),
            )  # fmt: skip
            answer.attach(count)
            await answer.done

        streaming = asyncio.ensure_future(stream())
        while events < 3:
            await asyncio.sleep(0.01)
        before = events
        status, answer = await client.post(response_format=bind(HEAVY), max_tokens=1)
        during = events - before
        streaming.cancel()
        await asyncio.wait([streaming])
        client.http.close()
    assert status == 200, answer
    # While the steps halted for it, there were two or three: those before it came and with it.
    assert during > 10


def wait_compiled(grammars: Grammars, grammar: Grammar) -> None:
    while not grammars.admits(grammar):
        grammars.compile_next([grammar], free=True)
        grammars.wait(60)
        grammars.collect()


def test_compiled_grammars_take_bounded_memory(model: tuple[Path, int]) -> None:
    tokenizer = genai.Tokenizer(str(model[0]))
    grammars = Grammars(genai, tokenizer, str(model[0]), max_bytes=5_000)
    some = [Grammar(f'root ::= "{letter}"', 2_000) for letter in "abc"]
    wait_compiled(grammars, some[0])
    wait_compiled(grammars, some[1])
    assert grammars.admits(some[0])
    wait_compiled(grammars, some[2])
    assert not grammars.admits(some[0])
    wait_compiled(grammars, some[0])
    assert grammars.find_fault(some[0]) is None


def test_grammar_that_does_not_compile_says_why_and_breaks_nothing(model: tuple[Path, int]) -> None:
    grammars = Grammars(genai, genai.Tokenizer(str(model[0])), str(model[0]))
    bad, good = Grammar("root ::= nothing"), Grammar('root ::= "a"')
    wait_compiled(grammars, bad)
    assert "not defined" in (grammars.find_fault(bad) or "")
    wait_compiled(grammars, good)
    assert grammars.find_fault(good) is None


def test_requests_and_compilations_take_turns(model: tuple[Path, int]) -> None:
    grammars = Grammars(genai, genai.Tokenizer(str(model[0])), str(model[0]))
    known, new = Grammar('root ::= "a"'), Grammar('root ::= "b"')
    wait_compiled(grammars, known)
    assert grammars.admits(None)
    # Somebody waits for a new one: no request with a grammar begins until it was compiled.
    grammars.compile_next([new], free=False)
    assert not grammars.admits(known)
    assert grammars.admits(None)
    grammars.compile_next([new], free=True)
    assert not grammars.admits(known)
    grammars.wait(60)
    grammars.collect()
    assert grammars.admits(known)
    assert grammars.admits(new)
