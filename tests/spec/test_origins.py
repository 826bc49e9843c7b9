"""Origins and host names, as a spec may write them."""

from __future__ import annotations

import pytest

from thrifty.spec.origins import parse_host, parse_origin


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://Chat.Example.com", "https://chat.example.com"),
        ("HTTPS://chat.example.com/", "https://chat.example.com"),
        ("https://chat.example.com:443", "https://chat.example.com"),
        ("http://chat.example.com:80", "http://chat.example.com"),
        ("https://chat.example.com:80", "https://chat.example.com:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("*", "*"),
    ],
)
def test_origins_are_read_as_browsers_write_them(written: str, meant: str) -> None:
    assert parse_origin(written) == meant


@pytest.mark.parametrize(
    "text",
    ["", "chat.example.com", "https://", "https://a/path", "https://a?b", "https://u@a", "ftp://a",
     "https://a:0", "https://a:70000", "https://a:port", "https://*.example.com", "https://a b",
     "null", "https://ä.de", "https://a#b", "https://[::1", "https://a:1:2"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an? (origin|host name)"):
        parse_origin(text)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("LLM.Example.com.", "llm.example.com"), ("10.0.0.5", "10.0.0.5"), ("::1", "[::1]"),
     ("[2001:DB8:0::1]", "[2001:db8::1]"), ("my_host", "my_host")],
)  # fmt: skip
def test_hosts_are_read_as_the_header_has_them(written: str, meant: str) -> None:
    assert parse_host(written) == meant


@pytest.mark.parametrize("text", ["", "a:8080", "http://a", "a/b", "*.a", "-a", "a b", "ä", "a..b"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        parse_host(text)
