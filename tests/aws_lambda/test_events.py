"""Function URL events and the heads of answers."""

from __future__ import annotations

import json

import pytest

from tests.aws_lambda.emulator import PRELUDE_END, make_event
from thrifty.aws_lambda.access import HASH_VARIABLE, IAM_VARIABLE, read_access
from thrifty.aws_lambda.events import EventRefused, make_prelude, parse_event
from thrifty.errors import ThriftyError
from thrifty.openai.errors import WireError


def parse(event: object) -> object:
    return parse_event(json.dumps(event).encode())


def test_an_event_becomes_a_request() -> None:
    event = make_event("post", "/v1/models/a b", {"ü": 1}, "k", query="x=1&y=%20", **{"X-A": "1"})
    event["cookies"] = ["a=1", "b=2"]
    request = parse_event(json.dumps(event).encode())
    assert (request.method, request.target) == ("POST", "/v1/models/a%20b?x=1&y=%20")
    assert json.loads(request.body) == {"ü": 1}
    assert request.headers["x-a"] == "1"
    assert request.headers["cookie"] == "a=1; b=2"
    assert "host" not in request.headers
    assert not request.signed


def test_a_plain_body_is_taken_as_text() -> None:
    event = {**make_event("POST", "/", {}), "isBase64Encoded": False, "body": "ü"}
    assert parse_event(json.dumps(event).encode()).body == "ü".encode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "1.0"}, "version '1.0'; invoke the function by its URL"),
        ({"requestContext": {}}, "no requestContext.http.method"),
        ({"requestContext": {"http": {"method": "GET /"}}}, "no requestContext.http.method"),
        ({"body": "%%%"}, "is not base64"),
        ({"body": {"a": 1}}, "body is no text"),
        ({"headers": {"a": "b\r\nc: d"}}, "characters that HTTP does not allow"),
    ],
)
def test_what_is_no_request_is_refused(change: dict, words: str) -> None:
    with pytest.raises(EventRefused, match=words):
        parse({**make_event("POST", "/", {}), **change})


def test_what_is_no_event_is_refused() -> None:
    for data in (b"{", b"[]", b'"a"', b"{}"):
        with pytest.raises(EventRefused):
            parse_event(data)


def test_the_prelude_has_status_headers_and_cookies() -> None:
    given = [
        ("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2"),
        ("vary", "a"), ("Vary", "b"), ("Transfer-Encoding", "chunked"), ("content-length", "3"),
    ]  # fmt: skip
    text, end, rest = make_prelude(201, given).partition(PRELUDE_END)
    assert end
    assert rest == b""
    assert json.loads(text) == {
        "statusCode": 201, "headers": {"content-type": "text/plain", "vary": "a, b"},
        "cookies": ["a=1", "b=2"],
    }  # fmt: skip


def test_access_is_by_the_hash_of_a_key_or_by_iam() -> None:
    # printf %s secret | sha256sum
    known = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    access = read_access({HASH_VARIABLE: known})
    access.check(parse(make_event("GET", "/", key="secret")))
    access.check(parse(make_event("GET", "/", **{"x-api-key": "secret"})))
    for event in (
        make_event("GET", "/"), make_event("GET", "/", key="other"),
        make_event("GET", "/", key=known), make_event("GET", "/", signed=True),
    ):  # fmt: skip
        with pytest.raises(WireError, match="needs its API key"):
            access.check(parse(event))
    signed = read_access({IAM_VARIABLE: "1"})
    signed.check(parse(make_event("GET", "/", signed=True)))
    with pytest.raises(WireError, match="signed for IAM"):
        signed.check(parse(make_event("GET", "/", key="secret")))
    for environment in ({}, {HASH_VARIABLE: "secret"}, {HASH_VARIABLE: known.upper()}):
        with pytest.raises(ThriftyError, match="must hold the SHA-256"):
            read_access(environment)
