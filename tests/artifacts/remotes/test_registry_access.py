"""How a registry's credentials are found and used: container tools' files, tokens, helpers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.artifacts.stored import put
from tests.artifacts.web import WebServer
from thrifty.artifacts import Store
from thrifty.artifacts.remotes import open_remote, parse_root, pull, push
from thrifty.artifacts.remotes.oci_access import find_credentials
from thrifty.errors import RemoteError

HTPASSWD = "alice:$2b$05$sybYo58vd1G3xiD9p/jLK.YcxeOBBP/IXJiwMvfv3xaWQkGfQIFCa\n"
"""What the real registry checks: bcrypt of `wonder`."""


def write_auth(path: Path, host: str, user: str = "alice", password: str = "wonder") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": text}}}))


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of `docker login`, which is not there yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path / "docker" / "config.json"


def test_where_credentials_are_found(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_credentials("registry.example.com") is None
    write_auth(config, "https://registry.example.com")
    assert find_credentials("registry.example.com") == ("alice", "wonder")
    assert find_credentials("other.example.com") is None
    write_auth(tmp_path / "auth.json", "registry.example.com", "bob", "a:b")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert find_credentials("registry.example.com") == ("bob", "a:b")


@pytest.mark.parametrize("where", ["credsStore", "credHelpers"])
def test_credential_helpers(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config.parent.mkdir(parents=True)
    host = "registry.example.com"
    config.write_text(json.dumps({where: "test" if where == "credsStore" else {host: "test"}}))
    with pytest.raises(RemoteError, match="docker-credential-test is not installed"):
        find_credentials(host)
    helper = tmp_path / "bin" / "docker-credential-test"
    helper.parent.mkdir()
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$1 $host" = "get registry.example.com" ] || exit 1\n'
        'echo \'{"Username": "carol", "Secret": "hush"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:/usr/bin:/bin")
    assert find_credentials(host) == ("carol", "hush")
    helper.write_text("#!/bin/sh\necho nonsense\n")
    with pytest.raises(RemoteError, match="docker-credential-test failed"):
        find_credentials(host)


@pytest.mark.parametrize("name", ["../evil", "a b", "x;y", ""])
def test_names_of_helpers_are_checked(config: Path, name: str) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"credHelpers": {"h": name}}))
    if not name:
        assert find_credentials("h") is None
        return
    with pytest.raises(RemoteError, match="is not the name of a credential helper"):
        find_credentials("h")


@pytest.mark.parametrize("text", ["{", '{"auths": {"h": {"auth": "???"}}}'])
def test_damaged_files_are_named(config: Path, text: str) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(text)
    with pytest.raises(RemoteError, match=r"config\.json"):
        find_credentials("h")


def sent_headers(web: WebServer, path: str) -> list[str]:
    return [
        headers.get("authorization", "") for _, seen, headers in web.log if seen.startswith(path)
    ]


def test_tokens_are_asked_for_by_scope_and_kept(web: WebServer, config: Path) -> None:
    """The flow of the distribution project: a challenge, a token for a scope, the request again."""
    host = urlsplit(web.url).netloc
    write_auth(config, host)

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/token":
            return 200, {}, json.dumps({"token": "tok"}).encode()
        authorized = web.log[-1][2].get("authorization") == "Bearer tok"
        if not authorized:
            realm = f'Bearer realm="http://{host}/token",service="registry"'
            return 401, {"www-authenticate": realm}, b""
        return 404, {}, b""

    web.fallback = answer
    remote = open_remote(parse_root(f"oci://{host}/team/chat"))
    for _ in range(2):
        assert remote.find_blob("0" * 64) is None
    (basic,) = sent_headers(web, "/token")
    (asked,) = (seen for _, seen, _ in web.log if seen.startswith("/token"))
    assert parse_qs(urlsplit(asked).query) == {
        "service": ["registry"], "scope": ["repository:team/chat:pull"]
    }  # fmt: skip
    assert base64.b64decode(basic.removeprefix("Basic ")) == b"alice:wonder"
    assert sent_headers(web, f"/v2/team/chat/blobs/sha256:{'0' * 64}") == [
        "",
        "Bearer tok",
        "Bearer tok",
    ]


def test_a_wrong_password_is_told_without_it(web: WebServer, config: Path) -> None:
    host = urlsplit(web.url).netloc
    write_auth(config, host, password="hush")
    web.fallback = lambda method, path: (401, {"www-authenticate": "Basic realm=x"}, b"no")
    with pytest.raises(RemoteError, match=r"answered 401 .* check the credentials") as error:
        open_remote(parse_root(f"oci://{host}/team/chat")).find_blob("0" * 64)
    assert "hush" not in str(error.value)
    assert len(web.log) == 2


def test_a_token_server_elsewhere_must_be_https(web: WebServer, config: Path) -> None:
    """Else a registry on this machine could have the password sent anywhere in the clear."""
    host = urlsplit(web.url).netloc
    write_auth(config, host)
    web.fallback = lambda method, path: (
        401, {"www-authenticate": 'Bearer realm="http://registry.example.com/token"'}, b"",
    )  # fmt: skip
    with pytest.raises(RemoteError, match="is plain HTTP to another machine"):
        open_remote(parse_root(f"oci://{host}/team/chat")).find_blob("0" * 64)


def test_credentials_go_to_the_registry_alone(web: WebServer, config: Path, store: Store) -> None:
    """A registry may send uploads elsewhere; what it asked for is for itself."""
    from tests.artifacts.web import running_web

    host = urlsplit(web.url).netloc
    write_auth(config, host)
    put(store)
    with running_web() as elsewhere:

        def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
            if not web.log[-1][2].get("authorization"):
                return 401, {"www-authenticate": "Basic realm=x"}, b""
            if method == "POST":
                return 202, {"location": f"{elsewhere.url}/upload"}, b""
            return 404, {}, b""

        web.fallback = answer
        elsewhere.fallback = lambda method, path: (418, {}, b"")
        with pytest.raises(RemoteError, match="answered 418"):
            push(store, "tiny", f"oci://{host}/team/chat")
        assert elsewhere.log
        assert all("authorization" not in headers for _, _, headers in elsewhere.log)


@pytest.mark.parametrize(
    "manifest",
    [b"{", b"[]", b'{"config": {}}', b'{"config": {"mediaType": "x", "digest": "sha256:0"}}'],
)
def test_images_of_other_kinds_are_refused(web: WebServer, store: Store, manifest: bytes) -> None:
    host = urlsplit(web.url).netloc
    web.add("/v2/library/debian/manifests/v1", manifest)
    with pytest.raises(RemoteError, match="is no model that Thrifty pushed"):
        pull(store, f"oci://{host}/library/debian:v1")


def test_tags_on_several_pages(web: WebServer) -> None:
    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        first = not any(seen == "/next" for _, seen, _ in web.log)
        tags: dict[str, Any] = {"tags": ["v1", "latest", "v10"] if first else ["v3", "v03", 7]}
        link = {"link": '</next>; rel="next"'} if first else {}
        return 200, link, json.dumps(tags).encode()

    web.fallback = answer
    host = urlsplit(web.url).netloc
    assert open_remote(parse_root(f"oci://{host}/team/chat")).list_numbers("") == [1, 3, 10]


@pytest.mark.remote
def test_a_real_registry_with_a_password(store: Store, other: Store, config: Path) -> None:
    from tests.artifacts.remotes.servers import start_server

    settings = "auth:\n  htpasswd:\n    realm: test\n    path: FOLDER/htpasswd\n"
    server = start_server("oci", settings)
    (server.folder / "htpasswd").write_text(HTPASSWD)
    place = server.make_place()
    _, artifact = put(store)
    with pytest.raises(RemoteError, match="answered 401"):
        push(store, "tiny", place.url)
    write_auth(config, urlsplit(server.url).netloc)
    push(store, "tiny", place.url)
    assert pull(other, place.reference("tiny", 1)).artifact == artifact
