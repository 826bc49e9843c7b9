"""Look-ups change no answer's distribution, go with all that requests ask for, and end if they do not pay."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.engines.biased import serving
from tests.engines.random_schemas import Maker
from tests.engines.test_bound_answers import Client, model  # noqa: F401 - a fixture
from tests.engines.test_prepare import END as TINY_END
from tests.engines.test_prepare import (
    GREEDY,
    PROMPT,
    check_greedy,
    generate,
    ids,
    make_settings,
    prepare,
    put,
)
from tests.parts import ask
from thrifty.artifacts import Store
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino import lookups
from thrifty.engines.openvino.adapter import OpenVinoEngine
from thrifty.engines.openvino.decoder_worker import DecoderWorker
from thrifty.engines.openvino.lookups import Lookups
from thrifty.engines.server.backend import Sampling
from thrifty.spec import parse_spec

pytestmark = pytest.mark.engine

REPEATED = list(b"one two three one two three one two three one two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("prepared") / "models")
    return prepare(store, put(store), "none")[1]


def make_worker(folder: Path, end: int, **options: Any) -> DecoderWorker:
    settings = make_settings(
        str(folder),
        "decoder",
        1,
        kv_blocks=256,
        kv_precision="f16",
        eos_token_ids=(end,),
        **options,
    )
    return DecoderWorker(settings)


def test_greedy_answers_are_those_of_the_model(folder: Path) -> None:
    """Several at once, with prompts of more than a chunk, with their log-probabilities."""
    worker = make_worker(folder, TINY_END, speculation="prompt_lookup", prefill_chunk=32)
    prompts = [REPEATED, PROMPT, REPEATED[::-1], list(b"ab")]
    for _ in range(2):
        answers = generate(worker, *((prompt, GREEDY) for prompt in prompts))
        for prompt, outputs in zip(prompts, answers, strict=True):
            assert len(ids(outputs)) == GREEDY.max_tokens
            assert outputs[-1].finish == "length"
            assert sum(output.cached_tokens for output in outputs) == 0
            check_greedy(prompt, outputs)
    facts = worker.report([]).facts
    assert facts["speculating"] == 1.0
    assert facts["speculation_acceptance"] >= 0.0


def draw(worker: DecoderWorker, end: int, **settings: Any) -> Counter[int]:
    """How often each token comes, in answers to prompts that repeat what is likely."""
    jobs = [
        (
            [end, end, 7, end, end, 7],
            Sampling(max_tokens=100, temperature=0.7, ignore_eos=True, seed=seed, **settings),
        )
        for seed in range(1, 41)
    ]
    answers = [ids(outputs) for outputs in generate(worker, *jobs)]
    assert [len(answer) for answer in answers] == [100] * len(jobs)
    return Counter(token for answer in answers for token in answer)


@pytest.mark.parametrize("settings", [{}, {"frequency_penalty": 0.02}], ids=["plain", "penalty"])
def test_sampled_answers_keep_their_distribution(
    model: tuple[Path, int],  # noqa: F811
    settings: dict[str, Any],
) -> None:
    """Every token of this model has the same probabilities wherever it stands, so 4,000 tokens with
    look-ups and 4,000 without are two samples of one distribution: Pearson's chi-squared test.
    """
    path, end = model
    worker = make_worker(path, end, speculation="prompt_lookup")
    guessed = draw(worker, end, **settings)
    facts = worker.report([]).facts
    assert facts["speculation_tokens_per_step"] > 1.1  # guesses were right often enough to matter
    plain = draw(make_worker(path, end), end, **settings)
    likely = [token for token, _ in (guessed + plain).most_common(8)]
    pairs = [(guessed[token], plain[token]) for token in likely]
    pairs.append(
        (guessed.total() - sum(a for a, _ in pairs), plain.total() - sum(b for _, b in pairs))
    )
    assert guessed.total() == plain.total()
    chi_squared = sum((a - b) ** 2 / (a + b) for a, b in pairs if a + b)
    # The 99.99th percentile of the distribution with 8 degrees of freedom is 31.8.
    assert chi_squared < 31.8


def test_no_answer_ends_too_early_or_later_than_it_could(
    model: tuple[Path, int],  # noqa: F811
) -> None:
    """The likeliest token of this model is the end, so a greedy answer ends where it first may."""
    path, end = model
    worker = make_worker(path, end, speculation="prompt_lookup")
    jobs = [
        ([5, 6, 7, 5, 6, 7], Sampling(max_tokens=60, min_tokens=least, temperature=0.0))
        for least in (0, 1, 2, 9, 20, 59, 60)
    ]
    lengths = [len(ids(outputs)) for outputs in generate(worker, *jobs)]
    plain = [len(ids(outputs)) for outputs in generate(make_worker(path, end), *jobs)]
    assert lengths == plain
    for seed in range(12):
        sampling = Sampling(max_tokens=60, min_tokens=20, temperature=1.0, seed=seed)
        (outputs,) = generate(worker, ([5, 6, 7, 5, 6, 7], sampling))
        tokens = ids(outputs)
        assert 20 < len(tokens) <= 60
        assert end not in tokens[:20]
        assert outputs[-1].finish == ("stop" if tokens[-1] == end else "length")


async def test_what_look_ups_would_break_is_refused_by_name(
    model: tuple[Path, int],  # noqa: F811
) -> None:
    async with serving(*model, speculation="prompt_lookup") as url:
        client = Client(url)
        status, answer = await client.post(min_tokens=5, frequency_penalty=0.5)
        assert (status, answer["error"]["param"]) == (400, "min_tokens")
        assert "speculation: prompt_lookup" in answer["error"]["message"]
        for fine in ({"min_tokens": 5}, {"frequency_penalty": 0.5}):
            status, _ = await client.post(max_tokens=9, **fine)
            assert status == 200
        client.http.close()


async def test_answers_with_look_ups_satisfy_their_schemas(
    model: tuple[Path, int],  # noqa: F811
) -> None:
    schemas = [Maker(seed).strict() for seed in range(24)]
    async with serving(*model, speculation="prompt_lookup") as url:
        client = Client(url)
        verdicts = await asyncio.gather(
            *(client.judge(schema, seed) for seed, schema in enumerate(schemas))
        )
        client.http.close()
    assert set(verdicts) <= {"valid", "cut"}
    assert verdicts.count("valid") > len(schemas) / 3


async def test_stop_strings_and_counts_of_tokens_hold(
    model: tuple[Path, int],  # noqa: F811
) -> None:
    """Several tokens come in a step; what stands behind a stop string is neither told nor counted."""
    async with serving(*model, speculation="prompt_lookup") as url:
        client = Client(url)
        for seed in range(6):
            body = {
                "seed": seed, "max_tokens": 40, "stop": ["}"], "logprobs": True,
                "top_logprobs": seed % 3,
            }  # fmt: skip
            status, answer = await client.post(**body)
            assert status == 200
            (choice,) = answer["choices"]
            assert "}" not in choice["message"]["content"]
            scored = choice["logprobs"]["content"]
            assert answer["usage"]["completion_tokens"] >= len(scored)
            assert all(len(one["top_logprobs"]) == seed % 3 for one in scored)
            assert answer["usage"]["completion_tokens"] <= 40
            status, whole = await client.post(
                seed=seed, max_tokens=7, ignore_eos=True, n=2, temperature=1.0
            )
            assert status == 200
            assert whole["usage"]["completion_tokens"] == 14
        reply = await ask(client.http, url, b"", "/load", method="GET")
        assert reply.json()["facts"]["speculating"] == 1.0
        client.http.close()


def test_look_ups_are_left_where_they_do_not_pay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of answers, which go on."""
    monkeypatch.setattr(lookups, "WINDOW", 8)
    worker = make_worker(
        folder, TINY_END, speculation="prompt_lookup", speculation_least=4.9, prefill_chunk=32
    )
    answers = generate(worker, *((prompt, GREEDY) for prompt in (PROMPT, PROMPT[::-1], REPEATED)))
    for prompt, outputs in zip((PROMPT, PROMPT[::-1], REPEATED), answers, strict=True):
        assert len(ids(outputs)) == GREEDY.max_tokens
        check_greedy(prompt, outputs)
    assert worker.report([]).facts == {"speculating": 0.0}
    # The prefix cache is on from then on.
    long = list(b"A beginning that is long enough to fill more than one block of the cache. ")
    for cached in (0, 64):
        (outputs,) = generate(worker, (long, GREEDY))
        assert outputs[0].cached_tokens == cached
        check_greedy(long, outputs)


def test_they_pay_until_a_full_window_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "WINDOW", 4)
    few = Lookups(4, 2.0, None)
    for tokens in (1, 1, 1):
        few.note(tokens, 1)
    assert few.pays
    few.note(1, 1)
    assert (few.pays, few.acceptance, few.tokens_per_step) == (False, 0.0, 1.0)
    for _ in range(4):
        few.note(3, 1)
    assert (few.pays, few.acceptance) == (True, 0.5)
    many = Lookups(4, None, 2)
    for _ in range(4):
        many.note(5, 3)
    assert many.pays
    many.note(5, 4)
    assert not many.pays


def test_what_cannot_be_is_refused_by_name() -> None:
    machine, engine = detect_machine(), OpenVinoEngine()

    def fault(**options: Any) -> str:
        loaded = parse_spec({"engine": {"kind": "openvino", **options}})
        return "; ".join(str(one) for one in engine.check(loaded.spec, None, machine))

    assert fault(speculation="prompt_lookup") == ""
    assert "engine.speculation" in fault(speculation="draft")
    assert "changes sampled answers" in fault(speculation="draft")
    assert engine.traits.speculation == {"prompt_lookup"}
