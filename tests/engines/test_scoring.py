"""Log-probabilities that the engine does not give out: the same as an evaluation's, whatever else
runs, and gone with what needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.engines.test_prepare import put
from thrifty.artifacts import Store
from thrifty.engines.openvino import scoring
from thrifty.engines.openvino.backend import OpenVinoBackend
from thrifty.engines.openvino.options import OpenVinoOptions
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.backend import Failure, Output, Sampling, Scores
from thrifty.evaluate.open_model import open_model
from thrifty.evaluate.openvino_scorer import OpenVinoScorer
from thrifty.evaluate.scorer import Logprobs

pytestmark = pytest.mark.engine

CONTEXT = 256
TOKENS = [(7 * i * i + 3 * i) % 250 for i in range(CONTEXT)]
SCORER = "thrifty.engines.openvino.scoring_worker"


@dataclass
class Heard:
    """What a job was told."""

    outputs: list[Output] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, output: Output) -> None:
        """Its next tokens."""
        self.outputs.append(output)
        if output.finish:
            self.ended.set()

    def fail(self, failure: Failure) -> None:
        """Its end without an answer."""
        self.failures.append(failure)
        self.ended.set()

    @property
    def tokens(self) -> list[int]:
        """All its tokens."""
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def logprobs(self) -> list[float]:
        """Their log-probabilities."""
        return [one for output in self.outputs for one in output.logprobs or ()]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("scoring") / "models")
    put(store)
    return store


@pytest.fixture(scope="module")
def direct(store: Store) -> OpenVinoScorer:
    """The same prepared model, evaluated with the cache that is served."""
    scorer = open_model("tiny", store, kv_precision="u8")
    assert isinstance(scorer, OpenVinoScorer)
    return scorer


@pytest.fixture(scope="module")
def folder(store: Store, direct: OpenVinoScorer) -> Path:
    return store.folder_of(direct.identity.partition("+")[0])


@contextlib.asynccontextmanager
async def running(
    folder: Path, kv_blocks: int = 40, *, prefix_cache: bool = True
) -> AsyncIterator[OpenVinoBackend]:
    values = OpenVinoOptions(
        context=CONTEXT, max_batch=16, prefill_chunk=64, prefix_cache=prefix_cache,
        activation_group=64,
    ).model_dump()  # fmt: skip
    settings = Settings(str(folder), "decoder", 2, values, kv_blocks)
    backend = OpenVinoBackend(settings, CONTEXT)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def submit(backend: OpenVinoBackend, prompt: list[int], **settings: Any) -> tuple[int, Heard]:
    heard = Heard()
    sampling = Sampling(**{"temperature": 0.0, "ignore_eos": True, **settings})
    return backend.submit(prompt, sampling, heard.take, heard.fail), heard


def find_scorers() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if SCORER in process.cmdline():
                yield process


def log_probabilities(direct: OpenVinoScorer, tokens: list[int]) -> Logprobs:
    array = np.array(tokens, np.int64)
    return direct.score(array, array[1:, None]).logprobs[:, 0]


async def test_prompts_have_the_log_probabilities_of_an_evaluation(
    direct: OpenVinoScorer, folder: Path
) -> None:
    async with running(folder) as backend:
        for length in (2, 31, 32, 33, 34, 97, 128, 129, 130, 161, 162, 255):
            prompt = TOKENS[:length]
            expected = log_probabilities(direct, prompt)
            for most in (0, 1):
                _, heard = submit(
                    backend, prompt, max_tokens=most, top_logprobs=2, prompt_logprobs=True
                )
                await heard.ended.wait()
                assert not heard.failures
                scores = heard.outputs[0].prompt
                assert scores is not None
                np.testing.assert_allclose(scores.logprobs, expected, atol=1e-3)
                assert all(len(top) == 2 and top[0][1] >= top[1][1] for top in scores.top)
                assert len(heard.tokens) == most
        for most in (0, 2):
            _, heard = submit(backend, [5], max_tokens=most, prompt_logprobs=True)
            await heard.ended.wait()
            assert heard.outputs[0].prompt == Scores([], []), "nothing predicts a first token"
            assert len(heard.tokens) == most


async def test_answers_have_those_that_the_engine_gave_them(folder: Path) -> None:
    # What is cached of a prompt was rounded together with what followed it then.
    async with running(folder, prefix_cache=False) as backend:
        for length in (1, 31, 40, 64, 100):
            prompt = TOKENS[length : 2 * length]
            settings = {"max_tokens": 40, "temperature": 0.8, "seed": length, "min_p": 0.001}
            _, plain = submit(backend, prompt, logprobs=True, **settings)
            await plain.ended.wait()
            _, ranked = submit(backend, prompt, logprobs=True, top_logprobs=5, **settings)
            await ranked.ended.wait()
            assert ranked.tokens == plain.tokens
            np.testing.assert_allclose(ranked.logprobs, plain.logprobs, atol=1e-3)
            for output in ranked.outputs:
                for top in output.top or ():
                    assert [one for _, one in top] == sorted((x for _, x in top), reverse=True)


async def test_many_at_once_share_few_pages(folder: Path) -> None:
    async with running(folder, kv_blocks=16) as backend:
        jobs = [
            submit(backend, TOKENS[n : 2 * n + 20], max_tokens=20 + 20 * n, top_logprobs=5)[1]
            for n in range(9)
        ]
        await asyncio.gather(*(heard.ended.wait() for heard in jobs))
    for n, heard in enumerate(jobs):
        assert not heard.failures
        assert len(heard.tokens) == len(heard.logprobs) == 20 + 20 * n
        # Greedily the likeliest is chosen, but for what steps with others are rounded to.
        top = [one[0][1] for output in heard.outputs for one in output.top or ()]
        np.testing.assert_allclose(top, heard.logprobs, atol=0.5)


async def test_process_is_started_when_needed_and_ended_when_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "IDLE_S", 0.2)
    async with running(folder) as backend:
        _, heard = submit(backend, TOKENS[:9], max_tokens=2, logprobs=True)
        await heard.ended.wait()
        assert not list(find_scorers())
        for _ in range(2):
            _, heard = submit(backend, TOKENS[:9], max_tokens=2, top_logprobs=1)
            await heard.ended.wait()
            assert not heard.failures
            while list(find_scorers()):
                await asyncio.sleep(0.05)


async def test_death_of_the_process_fails_its_jobs_alone(folder: Path) -> None:
    async with running(folder) as backend:
        _, plain = submit(backend, TOKENS[:9], max_tokens=200)
        number, ranked = submit(backend, TOKENS[:9], max_tokens=200, top_logprobs=1)
        while not ranked.outputs:
            await asyncio.sleep(0.01)
        for process in find_scorers():
            process.kill()
        await ranked.ended.wait()
        assert [(f.job, f.kind) for f in ranked.failures] == [(number, "engine")]
        await plain.ended.wait()
        assert (len(plain.tokens), plain.failures) == (200, [])
        _, again = submit(backend, TOKENS[:9], max_tokens=3, top_logprobs=1)
        await again.ended.wait()
        assert (len(again.tokens), again.failures) == (3, [])


async def test_end_of_a_failed_process_does_not_end_its_successor(
    folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "model"
    shutil.copytree(folder, own)
    graph, away = own / "openvino_model.xml", tmp_path / "away.xml"
    async with running(own) as backend:
        graph.rename(away)
        _, first = submit(backend, TOKENS[:9], max_tokens=2, top_logprobs=1)
        await first.ended.wait()
        assert [failure.kind for failure in first.failures] == ["engine"]
        away.rename(graph)
        # The first process has told of its failure, and is about to end.
        _, second = submit(backend, TOKENS[:9], max_tokens=2, top_logprobs=1)
        await second.ended.wait()
        assert (len(second.tokens), second.failures) == (2, [])


async def test_cancelled_job_leaves_room_for_others(folder: Path) -> None:
    async with running(folder, kv_blocks=8) as backend:
        for _ in range(3):
            number, heard = submit(backend, TOKENS[:30], max_tokens=220, top_logprobs=1)
            while not heard.outputs:
                await asyncio.sleep(0.01)
            backend.cancel(number)
            before = len(heard.outputs)
        _, last = submit(backend, TOKENS[:30], max_tokens=220, top_logprobs=1)
        await last.ended.wait()
        assert (len(last.tokens), last.failures) == (220, [])
        assert len(heard.outputs) == before


async def test_model_that_does_not_fit_a_second_time_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "available_memory_bytes", lambda: 1000)
    async with running(folder) as backend:
        number, heard = submit(backend, TOKENS[:9], max_tokens=5, top_logprobs=1)
        await heard.ended.wait()
        (failure,) = heard.failures
        assert (failure.job, failure.kind) == (number, "logprobs")
        assert "a second time" in failure.message
        assert not list(find_scorers())
