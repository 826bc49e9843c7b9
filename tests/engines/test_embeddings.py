"""Embeddings over HTTP: whole, and cut where the model's own files say that they may be."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.artifacts.stored import SOURCE
from tests.graphs.test_encoder import write
from tests.parts import Reply, ask, running_server
from thrifty.artifacts import Store
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import HONOURS, OpenVinoEngine
from thrifty.engines.openvino.backend import OpenVinoBackend
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.app import ModelServer
from thrifty.http.client import HttpClient
from thrifty.spec import load_spec
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import ignore_progress

pytestmark = pytest.mark.engine


@contextlib.asynccontextmanager
async def running(folder: Path, **config: Any) -> AsyncIterator[str]:
    server = make_server(folder, **config)
    await server.start()
    async with running_server(server.handle) as (url, _):
        yield url
    await server.backend.stop()


def make_server(folder: Path, **config: Any) -> ModelServer:
    """A tiny encoder with embeddings of 32 numbers, prepared and launched as a fleet does."""
    store = Store(folder / "models")
    with store.stage("bert") as stage:
        (stage / "model").mkdir()
        source = write(stage / "model", **config)
        make_tokenizer().tokenizer.save(str(source / "tokenizer.json"))
        made = store.add(source, "bert", SOURCE)
    engine = OpenVinoEngine()
    spec = load_spec(flags={"model": "bert", "compress": "none"}).spec
    served = engine.prepare(spec, made, store, detect_machine(), ignore_progress)
    launch = engine.launch(served, store, 1, [0, 1], 0.5)
    settings = msgspec.convert(json.loads(launch.command[-1])["worker"], Settings)
    return ModelServer(
        "bert", OpenVinoBackend(settings, 24), TextTokenizer.load(Path(settings.folder)),
        engine="openvino", honours=HONOURS,
    )  # fmt: skip


async def embed(url: str, **fields: Any) -> Reply:
    client = HttpClient()
    try:
        body = json.dumps({"model": "bert", "input": [[2, 5, 3], [2, 9, 9, 3]], **fields}).encode()
        return await ask(client, url, body, "/v1/embeddings")
    finally:
        client.close()


def vectors(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    found = [one["embedding"] for one in reply.json()["data"]]
    if isinstance(found[0], str):
        found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
    return np.array(found, np.float32)


async def test_embeddings_are_cut_and_have_the_length_one_again(tmp_path: Path) -> None:
    async with running(tmp_path, matryoshka_dimensions=[8, 16]) as url:
        whole = vectors(await embed(url))
        assert whole.shape == (2, 32)
        for dimensions in (8, 16, 32):
            expected = whole[:, :dimensions]
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
            for form in ("float", "base64", None):
                cut = vectors(await embed(url, dimensions=dimensions, encoding_format=form))
                np.testing.assert_allclose(cut, expected, atol=1e-6)
        refused = await embed(url, dimensions=12)
        assert (refused.status, refused.error["param"]) == (400, "dimensions")
        assert "32 dimensions, and may be cut to 8, 16" in refused.error["message"]


async def test_embeddings_of_other_models_are_not_cut(tmp_path: Path) -> None:
    async with running(tmp_path) as url:
        assert vectors(await embed(url, dimensions=32)).shape == (2, 32)
        refused = await embed(url, dimensions=16)
        assert (refused.status, refused.error["code"]) == (400, "unsupported_parameter")
        assert "32 dimensions" in refused.error["message"]
