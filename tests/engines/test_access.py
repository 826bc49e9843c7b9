"""Model servers that others can reach: they need a key, and answer only who has it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import running_server
from thrifty.engines.echo.adapter import EchoEngine
from thrifty.engines.echo.backend import EchoBackend, make_tokenizer
from thrifty.engines.server import ENVIRONMENT, HOST_VARIABLE, KEY_VARIABLE
from thrifty.engines.server.access import MIN_KEY, check_access, require_key
from thrifty.engines.server.app import ModelServer
from thrifty.errors import EngineError
from thrifty.http.client import HttpClient

KEY = "k" * MIN_KEY


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5"])
def test_no_address_that_others_reach_without_a_key(host: str) -> None:
    with pytest.raises(EngineError, match=f"refusing to listen on {host}.*{KEY_VARIABLE}"):
        check_access(host, None)
    check_access(host, KEY)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    check_access(host, None)


@pytest.mark.parametrize("key", ["short", "k" * 40 + "\n", "ä" * 40, "k " * 40])
def test_keys_that_can_be_guessed_or_not_be_sent_are_refused(key: str) -> None:
    with pytest.raises(EngineError, match="at least 32 printable ASCII characters"):
        check_access("127.0.0.1", key)


def test_only_who_has_the_key_is_answered() -> None:
    async def main() -> None:
        model = ModelServer(
            "echo", EchoBackend(), make_tokenizer(), engine="echo",
            honours=EchoEngine.traits.honours or (),
        )  # fmt: skip
        await model.start()
        client = HttpClient()
        async with running_server(require_key(model.handle, KEY)) as (url, _):
            statuses = {}
            for path in ("/health", "/load", "/v1/models"):
                for given in (b"", b"Bearer " + KEY.encode(), b"bearer wrong", KEY.encode()):
                    headers = b"authorization: %b\r\n" % given if given else b""
                    statuses[path, given], _ = await client.fetch(f"{url}{path}", headers=headers)
            for path in ("/load", "/v1/models"):
                assert statuses[path, b"Bearer " + KEY.encode()] == 200
                for given in (b"", b"bearer wrong", KEY.encode()):
                    assert statuses[path, given] == 401
            assert {status for (path, _), status in statuses.items() if path == "/health"} == {200}
        client.close()

    asyncio.run(main())


def test_a_fleets_own_replicas_stay_on_loopback_whatever_the_environment_says() -> None:
    around = {HOST_VARIABLE: "0.0.0.0", KEY_VARIABLE: KEY}
    assert {**around, **ENVIRONMENT}[HOST_VARIABLE] == ""
    assert {**around, **ENVIRONMENT}[KEY_VARIABLE] == ""


def test_the_command_refuses_what_is_not_one_model(tmp_path: Path) -> None:
    spec = tmp_path / "two.yaml"
    for text, words in (
        ("name: a\nengine: echo\nversions: [{label: a}, {label: b}]\n", "one version"),
        ("engine: echo\ndeployments: [{name: a}, {name: b}]\n", "one deployment"),
        ("name: a\nengine: {kind: remote, urls: ['http://h/v1']}\n", "starts no server"),
    ):
        spec.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "thrifty", "replica", str(spec)],
            capture_output=True, text=True, timeout=120,
            env={**os.environ, "THRIFTY_HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 2
        assert words in done.stderr
