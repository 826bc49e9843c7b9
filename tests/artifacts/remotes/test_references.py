"""What users write for remotes, and what is refused."""

from __future__ import annotations

import pytest

from thrifty.artifacts.remotes import is_reference, parse_reference, parse_root
from thrifty.artifacts.remotes.reference import is_loopback, redact, require_safe_url
from thrifty.errors import RemoteError


@pytest.mark.parametrize(
    ("text", "root", "name", "number"),
    [
        ("s3://bucket/a/b/chat@v2", "s3://bucket/a/b", "chat", 2),
        ("gs://bucket/chat", "gs://bucket", "chat", None),
        ("az://container/chat@v12", "az://container", "chat", 12),
        ("s3://bucket", "s3://bucket", None, None),
        ("file:///srv/models/chat@v1", "file:///srv/models", "chat", 1),
        ("file:///chat", "file:///", "chat", None),
        ("/srv/models/chat", "file:///srv/models", "chat", None),
    ],
)
def test_references_of_keyed_remotes(
    text: str, root: str, name: str | None, number: int | None
) -> None:
    reference = parse_reference(text)
    assert (reference.root, reference.name, reference.number) == (root, name, number)


@pytest.mark.parametrize(
    ("text", "host", "path", "tag"),
    [
        ("oci://registry.example.com/team/chat", "registry.example.com", "team/chat", None),
        ("oci://127.0.0.1:5000/chat:v2", "127.0.0.1:5000", "chat", "v2"),
        (f"oci://h/a@sha256:{'0' * 64}", "h", "a", f"sha256:{'0' * 64}"),
        (f"oci://h/a:v1@sha256:{'0' * 64}", "h", "a", f"sha256:{'0' * 64}"),
    ],
)
def test_references_of_registries(text: str, host: str, path: str, tag: str | None) -> None:
    reference = parse_reference(text)
    assert (reference.host, reference.path, reference.tag) == (host, path, tag)


@pytest.mark.parametrize(
    "text",
    [
        "s3://user:hush@bucket/chat", "s3://hush@bucket/chat", "https://user:hush@host/x",
        "oci://user:hush@host/repo", "az://container/chat?sig=hush", "gs://bucket/chat#hush",
        "ftp://user:hush@host/x?token=hush",
    ],
)  # fmt: skip
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    for parse in (parse_reference, parse_root):
        with pytest.raises(RemoteError) as error:
            parse(text)
        assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://", "s3:///chat", "s3://bucket/../chat", "s3://bucket/a//b", "file://host/chat",
        "file:///a/../b", "oci://host", "oci://host/Repo", "oci://host/a:tag/b", "oci://host:99999/a",
        "oci://host/a@sha256:12", "s3://bucket/chat@2", "s3://bucket/a b", "http://host/chat",
        "oci://host/a:", "s3://bucket/chat@v0", "oci://ho st/a", "s3://bucket/\n",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(RemoteError):
        parse_reference(text)


def test_what_cannot_be_pushed_to() -> None:
    with pytest.raises(RemoteError, match="--as NAME@vN"):
        parse_root("s3://bucket/chat@v1")
    with pytest.raises(RemoteError, match="names a digest"):
        parse_root(f"oci://h/a@sha256:{'0' * 64}")


def test_which_texts_are_references() -> None:
    assert is_reference("s3://bucket/chat")
    assert not is_reference("hf:org/name")
    assert not is_reference("/srv/models")
    assert not is_reference("http://host/x")


def test_loopback() -> None:
    for host in ("localhost", "localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]:5000", "[::1]"):
        assert is_loopback(host), host
    for host in (
        "10.0.0.1",
        "example.com",
        "127.0.0.1.example.com",
        "[::2]:1",
        "localhost.example",
    ):
        assert not is_loopback(host), host


def test_plain_http_is_for_this_machine() -> None:
    require_safe_url("http://127.0.0.1:1", "X")
    require_safe_url("https://example.com", "X")
    for url in ("http://example.com", "http://127.0.0.1@example.com", "ftp://127.0.0.1", ""):
        with pytest.raises(RemoteError, match=r"^X "):
            require_safe_url(url, "X")


def test_messages_of_others_are_cleaned() -> None:
    said = 'Error\n PUT https://u:hush@a.net/c/k?sv=1&sig=hush ("https://a.net/k?sig=hush")'
    cleaned = redact(said)
    assert "hush" not in cleaned
    assert "https://...@a.net/c/k?..." in cleaned
