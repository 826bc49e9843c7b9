"""Whether bound answers satisfy their schemas, over thousands of random ones.

    python benchmarks/schemas.py

A replica serves a model that writes at random, with a liking for quotes and brackets, and has the
tokenizer of the default model: so the grammar alone makes an answer valid, and thousands are made in
minutes. Requests, grammars and the engine are those of any other replica. Each schema is sent over
HTTP at temperature 1. Every answer is judged by `jsonschema` (Draft 2020-12, with formats): those to
schemas of any keywords must be valid or a 400, those to schemas of enforced keywords and of OpenAI's
strict subset must be valid. Answers that the limit of tokens cuts are counted apart.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import ROOT, WORK, finish, parse_arguments, say

sys.path.insert(0, str(ROOT))

from tests.engines.biased import serving, write_biased_model
from tests.engines.random_schemas import Maker, judge

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.engines.machine import detect_machine
from thrifty.engines.registry import find_engine
from thrifty.http.client import HttpClient
from thrifty.http.origin import parse_origin
from thrifty.spec import load_spec
from thrifty.types import ignore_progress

KINDS = {"any keywords": 2000, "enforced keywords": 1000, "OpenAI's strict subset": 500}
AT_ONCE = 8
MAX_TOKENS = 2000
HANG_S = 300.0


def make_model() -> tuple[Path, int]:
    """A prepared model that writes at random, and its end of an answer."""
    store = Store(WORK / "homes" / "schemas" / "models")
    spec = load_spec(flags={"engine.kind": "openvino"}).spec
    engine = find_engine("openvino")
    served = engine.prepare(
        spec, fetch_model(store, spec.model), store, detect_machine(), ignore_progress
    )
    prepared = store.folder_of(served.artifact or "")
    end = json.loads((prepared / "thrifty.json").read_text())["eos_token_ids"][0]
    folder = WORK / "homes" / "schemas" / "biased"
    shutil.rmtree(folder, ignore_errors=True)
    write_biased_model(prepared, folder, end)
    return folder, end


def make_schema(kind: str, seed: int) -> dict[str, Any]:
    """A random schema that is an object."""
    maker = Maker(seed)
    while True:
        schema = {
            "any keywords": maker.any_schema,
            "enforced keywords": maker.enforced,
            "OpenAI's strict subset": maker.strict,
        }[kind]()
        if isinstance(schema, dict):
            return schema


async def judge_schema(client: HttpClient, url: str, kind: str, seed: int) -> tuple[str, float]:
    """What comes of one schema, and how long it took."""
    schema = make_schema(kind, seed)
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Write."}],
        "max_tokens": MAX_TOKENS,
        "temperature": 1,
        "seed": seed,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "random", "strict": True, "schema": schema},
        },
    }
    began = time.monotonic()
    try:
        async with asyncio.timeout(HANG_S):
            answer = await client.open(
                parse_origin(url), "POST", "/v1/chat/completions",
                headers=b"content-type: application/json\r\n", body=json.dumps(body).encode(),
            )  # fmt: skip
            data = await answer.read()
    except TimeoutError:
        verdict = f"hung for {HANG_S:.0f} s"
    else:
        verdict = judge(schema, answer.status, json.loads(data))
    if verdict not in ("valid", "refused", "cut"):
        say(f"{kind}, seed {seed}: {verdict}\n{json.dumps(schema)}")
    return verdict, time.monotonic() - began


async def measure(counts: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The verdicts on each kind of schemas."""
    results: dict[str, dict[str, Any]] = {}
    folder, end = make_model()
    async with serving(folder, end) as url:
        client = HttpClient()
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(kind: str, seed: int) -> tuple[str, float]:
            async with gate:
                return await judge_schema(client, url, kind, seed)

        for kind, count in counts.items():
            began = time.monotonic()
            verdicts = await asyncio.gather(*(one(kind, seed) for seed in range(count)))
            found = Counter(
                verdict if verdict in ("valid", "refused", "cut") else "wrong"
                for verdict, _ in verdicts
            )
            results[kind] = {
                "schemas": count,
                **{name: found[name] for name in ("valid", "refused", "cut", "wrong")},
                "longest_s": max(seconds for _, seconds in verdicts),
                "seconds": time.monotonic() - began,
            }
            say(f"{kind}: {results[kind]}")
        client.close()
    return results


def main() -> None:
    options = parse_arguments(
        __doc__ or "", rounds=1, share=(float, 1.0, "The share of the schemas to try.")
    )
    counts = {kind: max(1, round(count * options.share)) for kind, count in KINDS.items()}
    results = asyncio.run(measure(counts))
    figures = [
        {
            "figure": f"schemas of {kind}, {'' if kind.startswith('any') else 'refused, '}violated, crashed or hung",
            "measured": f"{r['wrong'] + (0 if kind.startswith('any') else r['refused'])} of {r['schemas']}",
            "bar": "0",
            "met": r["wrong"] == 0 and (kind.startswith("any") or r["refused"] == 0),
        }
        for kind, r in results.items()
    ]
    finish(
        "schemas",
        {"max_tokens": MAX_TOKENS, "results": results},
        [("schemas of", "tried", "valid", "refused", "cut by max_tokens", "wrong"),
         *((kind, *(str(r[k]) for k in ("schemas", "valid", "refused", "cut", "wrong"))) for kind, r in results.items())],
        figures,
        save=not options.no_save,
    )  # fmt: skip


if __name__ == "__main__":
    main()
