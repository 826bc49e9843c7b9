"""Errors on the wire, in the shape that OpenAI's client libraries expect."""

from __future__ import annotations

import json

import pytest

from thrifty.errors import ThriftyError
from thrifty.openai.errors import WireError, bad_request, internal_error, unavailable


def test_an_error_is_encoded_with_all_four_fields() -> None:
    error = WireError(404, "no 'x'", type="not_found_error", param="model", code="model_not_found")
    assert json.loads(error.encode()) == {
        "error": {"message": "no 'x'", "type": "not_found_error", "param": "model",
                  "code": "model_not_found"}
    }  # fmt: skip
    assert isinstance(error, ThriftyError)
    assert str(error) == "no 'x'"
    assert error.headers == []


@pytest.mark.parametrize(
    ("error", "status", "type_", "code", "param"),
    [
        (bad_request("bad", "top_p", "invalid_value"), 400, "invalid_request_error", "invalid_value", "top_p"),
        (bad_request("bad"), 400, "invalid_request_error", None, None),
        (unavailable("full", "queue_full"), 503, "overloaded_error", "queue_full", None),
        (internal_error(), 500, "server_error", "internal_error", None),
    ],
)  # fmt: skip
def test_each_kind_has_its_status_and_type(
    error: WireError, status: int, type_: str, code: str | None, param: str | None
) -> None:
    assert (error.status, error.type, error.code, error.param) == (status, type_, code, param)


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.01, b"1"), (1.0, b"1"), (1.6, b"2"), (30.0, b"30")]
)
def test_retry_after_is_whole_seconds_and_never_zero(seconds: float, header: bytes) -> None:
    assert unavailable("wait", "busy", seconds).headers == [(b"retry-after", header)]
