"""Other clients that people use, unchanged, against a service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import RunningService, running_service
from thrifty.fleet.ports import find_free_port

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("home")
    with running_service(
        home, "--engine", "echo", "--port", str(find_free_port()), "--no-measure"
    ) as running:
        yield running


def test_langchain_invokes_streams_and_batches(service: RunningService) -> None:
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(
        model="echo", base_url=f"{service.url}/v1", api_key="none", max_retries=0
    )
    assert chat.invoke("Hello from langchain").content == "Hello from langchain"
    assert "".join(chunk.content for chunk in chat.stream("streamed words")) == "streamed words"
    replies = chat.batch(["one", "two", "three"])
    assert [reply.content for reply in replies] == ["one", "two", "three"]
    assert replies[0].usage_metadata["total_tokens"] > 3


def test_llm_command_line_talks_to_it(service: RunningService, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        json.dumps([{"model_id": "served", "model_name": "echo", "api_base": f"{service.url}/v1"}])
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    for options in ([], ["--no-stream"]):
        result = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "served", *options, "Hello from llm"],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.stdout.strip() == "Hello from llm", result.stderr


def test_curl_as_the_banner_prints_it(service: RunningService) -> None:
    text = service.output.read_text()
    command = text[text.index("curl http") :].split("\n\n")[0]
    result = subprocess.run(
        ["sh", "-c", f"{command} -s"], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == "Hello"
