"""The runtime as a process, with the echo engine, against an emulator of the Runtime API."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.aws_lambda.emulator import make_event
from tests.aws_lambda.function import KEY, Function, bake_echo, running_function
from tests.parts import wait_until
from thrifty.aws_lambda.access import HASH_VARIABLE
from thrifty.aws_lambda.baked import FILE
from thrifty.errors import ThriftyError

pytestmark = pytest.mark.service

ENVIRONMENT = {HASH_VARIABLE: hashlib.sha256(KEY.encode()).hexdigest()}


def ask(text: str, key: str | None = KEY, **fields: Any) -> dict[str, Any]:
    body = {"model": "pretend", "messages": [{"role": "user", "content": text}], **fields}
    return make_event("POST", "/v1/chat/completions", body, key)


@pytest.fixture
def slow_function(tmp_path: Path) -> Any:
    """Tokens come a fifth of a second apart."""
    root = bake_echo(tmp_path / "home", tpot=0.2, reply=" ".join(["word"] * 200))
    with running_function(root, ENVIRONMENT) as function:
        yield function


def test_requests_are_answered_streamed_and_refused(tmp_path: Path) -> None:
    root = bake_echo(tmp_path / "home", tpot=0.1)
    with running_function(root, ENVIRONMENT) as function:
        invoke = function.emulator.invoke
        whole = invoke(ask("Hello")).wait()
        assert whole.head["statusCode"] == 200
        assert whole.head["headers"]["content-type"] == "application/json"
        assert b'"content":"Hello"' in whole.body
        assert whole.headers["lambda-runtime-function-response-mode"] == "streaming"
        assert (
            whole.headers["content-type"] == "application/vnd.awslambda.http-integration-response"
        )
        assert whole.trailers == {}
        # The first phase ended when the engine was ready, not before.
        assert b"ready after" in function.log.read_bytes()

        streamed = invoke(ask("one two three four five six", stream=True)).wait()
        assert streamed.head["headers"]["content-type"].startswith("text/event-stream")
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        times = [at for at, piece in streamed.pieces if b'"content":"' in piece]
        assert len(times) >= 5
        assert times[-1] - times[0] > 0.3, "tokens come one after the other"

        models = invoke(make_event("GET", "/v1/models", key=KEY)).wait()
        assert b'"pretend"' in models.body
        for event, status, words in (
            (ask("Hello", key=None), 401, b"needs its API key"),
            (ask("Hello", key="other"), 401, b"invalid_api_key"),
            (ask("Hello", max_tokens="many"), 400, b"max_tokens"),
            (make_event("GET", "/none", key=KEY), 404, b"error"),
        ):
            refused = invoke(event).wait()
            assert refused.head["statusCode"] == status
            assert words in refused.body
            assert refused.trailers == {}

        ping = invoke({"source": "aws.events"}).wait()
        assert ping.error is not None
        assert ping.error["errorType"] == "Thrifty.EventRefused"
        assert "invoke the function by its URL" in ping.error["errorMessage"]

        engine = function.engine()
        assert function.terminate() == 0
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    log = function.log.read_text()
    assert KEY not in log


def test_an_engine_that_dies_in_the_middle_is_told(slow_function: Function) -> None:
    invoked = slow_function.emulator.invoke(ask("Hello", stream=True))
    invoked.wait_for(b'"content":"')
    slow_function.engine().kill()
    invoked.wait()
    assert invoked.trailers["lambda-runtime-function-error-type"] == "Thrifty.replica_lost"
    assert invoked.fault is not None
    assert b'data: {"error":{"message":"the engine' in invoked.body
    assert b"[DONE]" not in invoked.body
    # Lambda starts a new environment for the next event.
    assert slow_function.process.wait(30) == 1


def test_an_answer_ends_before_lambda_ends_the_function(slow_function: Function) -> None:
    emulator = slow_function.emulator
    emulator.invoke(make_event("GET", "/v1/models", key=KEY)).wait()
    invoked = emulator.invoke(ask("Hello", stream=True), timeout_s=3.0).wait()
    assert time.time() < invoked.deadline_s
    assert invoked.fault is not None
    assert invoked.fault["errorType"] == "Thrifty.deadline_exceeded"
    assert b"the function's time ran out" in invoked.body
    late = emulator.invoke(ask("Hello"), timeout_s=2.0).wait()
    assert late.head["statusCode"] == 504


def test_a_client_that_goes_frees_the_engine(slow_function: Function) -> None:
    emulator = slow_function.emulator
    emulator.invoke(ask("Hello", stream=True), leave_after=600).wait()
    # The next event is answered although the first would have taken 40 s, and nothing else runs.
    assert emulator.invoke(make_event("GET", "/v1/models", key=KEY)).wait().body

    def is_idle() -> bool:
        load = emulator.invoke(make_event("GET", "/load", key=KEY)).wait()
        return b'"running":0' in load.body

    wait_until(is_idle, 30, "the engine stopped")


def test_sigterm_in_the_middle_ends_the_stream_and_the_engine(slow_function: Function) -> None:
    invoked = slow_function.emulator.invoke(ask("Hello", stream=True))
    invoked.wait_for(b'"content":"')
    assert slow_function.terminate() == 0
    assert invoked.wait().fault is not None


def test_what_keeps_a_function_from_starting_is_reported(tmp_path: Path) -> None:
    good = bake_echo(tmp_path / "good")
    bad = bake_echo(tmp_path / "bad")
    (bad / FILE).write_text('{"name": 1}')
    missing = tmp_path / "missing"
    missing.mkdir()
    unknown = bake_echo(tmp_path / "unknown")
    text = (unknown / FILE).read_text().replace('"engine":"echo"', '"engine":"ehco"')
    (unknown / FILE).write_text(text)
    for root, environment, words in (
        (missing, ENVIRONMENT, "must be built with `thrifty lambda bake`"),
        (bad, ENVIRONMENT, "is not of this release"),
        (unknown, ENVIRONMENT, "'ehco'"),
        (good, {}, "must hold the SHA-256"),
    ):
        with running_function(root, environment) as function:
            assert function.process.wait(60) != 0
            error = function.emulator.init_error
            assert error is not None, function.log.read_text()
            assert words in error["errorMessage"]
            assert error["Lambda-Runtime-Function-Error-Type"] == error["errorType"]
            assert function.emulator.polls == 0


def test_an_engine_that_ends_while_it_loads_is_an_init_error(tmp_path: Path) -> None:
    root = bake_echo(tmp_path / "home", load=60.0)
    with running_function(root, ENVIRONMENT) as function:
        wait_until(
            lambda: psutil.Process(function.process.pid).children(), 60, "the engine is started"
        )
        function.engine().send_signal(signal.SIGKILL)
        assert function.process.wait(60) == 1
        assert function.emulator.init_error is not None
        assert "status -9" in function.emulator.init_error["errorMessage"]


def test_nothing_is_baked_into_the_home_of_a_service(tmp_path: Path) -> None:
    """Its database must not become readable."""
    (tmp_path / "thrifty.db").touch(mode=0o600)
    with pytest.raises(ThriftyError, match="set THRIFTY_HOME to a new folder"):
        bake_echo(tmp_path)
    assert (tmp_path / "thrifty.db").stat().st_mode & 0o777 == 0o600


def test_what_is_baked_can_be_read_by_all(tmp_path: Path) -> None:
    """Lambda runs the image as a user of its own, whatever the umask of its builder was."""
    before = os.umask(0o077)
    try:
        (tmp_path / "home" / "models").mkdir(parents=True)
        (tmp_path / "home" / "models" / "weights").write_text("1")
        root = bake_echo(tmp_path / "home")
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        wanted = 0o755 if path.is_dir() else 0o644
        assert path.stat().st_mode & 0o777 == wanted, path
