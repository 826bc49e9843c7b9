"""From a URL to where a connection goes, and nothing in it that could be written into a head."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.http.origin import Origin, parse_origin


@pytest.mark.parametrize(
    ("url", "origin", "host", "back"),
    [
        ("http://example.com", Origin("example.com", 80), b"example.com", "http://example.com"),
        ("https://Example.com/v1/", Origin("example.com", 443, True, "/v1"), b"example.com",
         "https://example.com/v1"),
        ("http://127.0.0.1:9001/v1", Origin("127.0.0.1", 9001, False, "/v1"), b"127.0.0.1:9001",
         "http://127.0.0.1:9001/v1"),
        ("https://example.com:80", Origin("example.com", 80, True), b"example.com:80",
         "https://example.com:80"),
        ("http://[::1]:8080", Origin("::1", 8080), b"[::1]:8080", "http://[::1]:8080"),
        ("http://münchen.de/ü b/", Origin("xn--mnchen-3ya.de", 80, False, "/%C3%BC%20b"),
         b"xn--mnchen-3ya.de", "http://xn--mnchen-3ya.de/%C3%BC%20b"),
    ],
)  # fmt: skip
def test_origins_are_read_and_written(url: str, origin: Origin, host: bytes, back: str) -> None:
    assert parse_origin(url) == origin
    assert origin.host_header == host
    assert origin.url == back
    assert parse_origin(back) == origin


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not an http:// or https:// URL"),
        ("example.com", "not an http:// or https:// URL"),
        ("localhost:8080", "not an http:// or https:// URL"),
        ("ftp://example.com", "not an http:// or https:// URL"),
        ("http://", "not an http:// or https:// URL"),
        ("http:///path", "not an http:// or https:// URL"),
        ("http://h:x", "is not a URL: Port could not be cast"),
        ("http://h:0", "is not a URL: no server can be at 'h:0'"),
        ("http://h:70000", "is not a URL: Port out of range"),
        ("http://[::1", "is not a URL: Invalid IPv6 URL"),
        ("http://a..b", "is not a URL: "),
        ("http://a b/", "is not a URL: no server can be at 'a b'"),
        ("http://h/?q=1", "has a query or fragment; give the base URL alone"),
        ("http://h/#f", "has a query or fragment; give the base URL alone"),
    ],
)
def test_urls_that_are_no_origin_are_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_origin(url)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://ann:hunter2@h/",
        "http://hunter2@h",
        "http://ann:hunter2@h:x",
        "http://ann:hunter2@[::1",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="give the key as its own setting") as caught:
        parse_origin(url)
    assert "hunter2" not in str(caught.value)


@settings(max_examples=200)
@given(st.text(max_size=20), st.text(max_size=10))
def test_any_text_is_an_origin_of_plain_ascii_or_a_value_error(host: str, path: str) -> None:
    try:
        origin = parse_origin(f"http://{host}/{path}")
    except ValueError:
        return
    # What goes into a request's head must not be able to end a line there.
    for text in (origin.host_header.decode("ascii"), origin.base_path):
        assert text.isascii()
        assert text.isprintable()
        assert " " not in text
