"""Rankings over HTTP: scores as PyTorch computes them, cut documents, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.artifacts.stored import SOURCE
from tests.engines.gguf_encoder import RANK, write_gguf_encoder
from tests.engines.test_llamacpp import needs_llama_cpp
from tests.engines.tiny_reranker import (
    CONTEXT,
    QUERY,
    TEXTS,
    compute_logits,
    write_reranker,
)
from tests.parts import Reply, ask, running_echo, running_server
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.sources import fetch_model
from thrifty.engines.llamacpp.adapter import LlamaCppEngine
from thrifty.engines.llamacpp.backend import LlamaCppBackend
from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import HONOURS, OpenVinoEngine
from thrifty.engines.openvino.backend import OpenVinoBackend
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.app import ModelServer
from thrifty.errors import FormatRefused
from thrifty.http.client import HttpClient
from thrifty.spec import load_spec
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, ignore_progress


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


def store_reranker(store: Store, kind: str) -> tuple[NamedVersion, Artifact]:
    with store.stage(kind) as stage:
        return store.add(write_reranker(stage / "model", kind), kind, SOURCE)


@contextlib.asynccontextmanager
async def running(
    store: Store, made: tuple[NamedVersion, Artifact], compress: str = "none"
) -> AsyncIterator[str]:
    """A reranker, prepared and launched as a fleet does."""
    engine = OpenVinoEngine()
    spec = load_spec(flags={"model": made[0].name, "compress": compress}).spec
    served = engine.prepare(spec, made, store, detect_machine(), ignore_progress)
    assert served.family == Family.RERANKER
    launch = engine.launch(served, store, 1, [0, 1], 0.5)
    settings = msgspec.convert(json.loads(launch.command[-1])["worker"], Settings)
    server = ModelServer(
        "r", OpenVinoBackend(settings, served.context_length or 0),
        TextTokenizer.load(Path(settings.folder)), engine="openvino", honours=HONOURS,
    )  # fmt: skip
    await server.start()
    async with running_server(server.handle) as (url, _):
        yield url
    await server.backend.stop()


async def rerank(url: str, **fields: Any) -> Reply:
    client = HttpClient()
    try:
        body = {"model": "r", "query": QUERY, "documents": TEXTS, **fields}
        return await ask(client, url, json.dumps(body).encode(), "/v1/rerank")
    finally:
        client.close()


def scores(reply: Reply) -> Any:
    """The relevance of each document, in the request's order."""
    assert reply.status == 200, reply.body
    results = sorted(reply.json()["results"], key=lambda one: one["index"])
    return np.array([one["relevance_score"] for one in results])


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["bert", "roberta"])
async def test_scores_are_those_of_pytorch(kind: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    made = store_reranker(store, kind)
    assert made[1].description.family is Family.RERANKER
    assert made[1].description.context_length == CONTEXT
    expected = sigmoid(compute_logits(store.folder_of(made[1].id), QUERY, TEXTS))
    assert np.ptp(expected) > 0.1
    async with running(store, made) as url:
        reply = await rerank(url, return_documents=True)
        np.testing.assert_allclose(scores(reply), expected, atol=0.01)
        answer = reply.json()
        # The engine's own scores decide between documents that PyTorch scores nearly alike.
        assert [one["index"] for one in answer["results"]] == np.argsort(-scores(reply)).tolist()
        assert all(one["document"]["text"] == TEXTS[one["index"]] for one in answer["results"])
        tokenizer = TextTokenizer.load(store.folder_of(made[1].id))
        tokens = sum(len(pair.ids) for pair in tokenizer.encode_pairs(QUERY, TEXTS))
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        objects = [{"text": text} for text in TEXTS]
        best = (await rerank(url, documents=objects, top_n=2)).json()["results"]
        assert best == [
            {name: one[name] for name in ("index", "relevance_score")}
            for one in answer["results"][:2]
        ]


@pytest.mark.engine
async def test_weights_in_8_bits_order_alike(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    made = store_reranker(store, "bert")
    expected = sigmoid(compute_logits(store.folder_of(made[1].id), QUERY, TEXTS))
    async with running(store, made, "int8") as url:
        np.testing.assert_allclose(scores(await rerank(url)), expected, atol=0.1)


@pytest.mark.engine
async def test_a_document_that_does_not_fit_is_named_or_cut(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    made = store_reranker(store, "bert")
    tokenizer = TextTokenizer.load(store.folder_of(made[1].id))
    (whole,) = tokenizer.encode_pairs(QUERY, [TEXTS[1] * 20])
    assert len(whole.ids) > CONTEXT
    async with running(store, made) as url:
        documents = [TEXTS[0], TEXTS[1] * 20]
        refused = await rerank(url, documents=documents)
        assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
        assert f"'documents[1]' have {len(whole.ids)} tokens together" in refused.error["message"]
        cut = await rerank(url, documents=documents, truncate_prompt_tokens=-1)
        (short,) = tokenizer.encode_pairs(QUERY, documents[1:], CONTEXT)
        assert len(short.ids) == CONTEXT
        texts = [documents[0], documents[1][: short.chars]]
        expected = sigmoid(compute_logits(store.folder_of(made[1].id), QUERY, texts))
        np.testing.assert_allclose(scores(cut), expected, atol=0.01)


def store_gguf(store: Store, folder: Path, kind: str, segments: int) -> tuple[Path, Any]:
    source = write_reranker(folder / kind, kind, segments=segments)
    path = write_gguf_encoder(source, folder / f"{kind}-{segments}.gguf", pooling=RANK)
    return source, fetch_model(store, str(path))


class TestLlamaCpp:
    pytestmark = needs_llama_cpp

    async def test_scores_are_those_of_pytorch(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "home" / "models")
        source, made = store_gguf(store, tmp_path, "roberta", 1)
        engine = LlamaCppEngine()
        flags = {"model": made[0].name, "engine.kind": "llamacpp", "compress": "none"}
        spec = load_spec(flags=flags).spec
        assert engine.check(spec, made[1], detect_machine()) == []
        served = await asyncio.to_thread(
            engine.prepare, spec, made, store, detect_machine(), ignore_progress
        )
        assert served.family == Family.RERANKER
        launch = engine.launch(served, store, 1, [0, 1], 0.5)
        given = json.loads(launch.command[-1])
        tokenizer = TextTokenizer.load(Path(given["folder"]))
        backend = LlamaCppBackend(
            Path(given["python"]), Path(given["folder"]),
            msgspec.convert(given["worker"], WorkerSettings), tokenizer,
            family=Family(given["family"]), eos_token_ids=[], kv_bytes=0,
        )  # fmt: skip
        server = ModelServer("r", backend, tokenizer, engine="llamacpp", honours=HONOURS)
        await server.start()
        async with running_server(server.handle) as (url, _):
            reply = await rerank(url)
            expected = sigmoid(compute_logits(source, QUERY, TEXTS))
            np.testing.assert_allclose(scores(reply), expected, atol=0.01)
            theirs = TextTokenizer.load(source).encode_pairs(QUERY, TEXTS)
            assert reply.json()["usage"]["prompt_tokens"] == sum(len(pair.ids) for pair in theirs)
        await backend.stop()

    @pytest.mark.parametrize(
        ("segments", "message"),
        [
            (2, "llama.cpp takes every token for the first kind"),
            (1, "joins query and document by other tokens"),  # it leaves out the last one
        ],
    )
    def test_what_it_would_order_wrongly_is_refused(
        self, segments: int, message: str, tmp_path: Path
    ) -> None:
        store = Store(tmp_path / "home" / "models")
        _, made = store_gguf(store, tmp_path, "bert", segments)
        spec = load_spec(flags={"model": made[0].name, "engine.kind": "llamacpp"}).spec
        with pytest.raises(FormatRefused, match=message):
            LlamaCppEngine().prepare(spec, made, store, detect_machine(), ignore_progress)


def test_a_classifier_with_several_labels_is_no_reranker(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_reranker(folder, "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    store = Store(tmp_path / "models")
    with store.stage("m") as stage:
        made = store.add(folder.rename(stage / "model"), "m", SOURCE)
    assert made[1].description.family is Family.DECODER
    spec = load_spec(flags={"model": "m"}).spec
    (problem,) = OpenVinoEngine().check(spec, made[1], detect_machine())
    assert "'BertForSequenceClassification' cannot be served" in problem.message


async def test_echo_ranks_by_common_words() -> None:
    async with running_echo("r", family=Family.RERANKER) as url:
        reply = await rerank(url, query="a cat", documents=["dogs", "a cat", "the cat"])
        assert [one["index"] for one in reply.json()["results"]] == [1, 2, 0]
