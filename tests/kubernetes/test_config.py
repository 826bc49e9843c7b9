"""Where the API server is and who we are, by a pod's account or a kubeconfig."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from thrifty.errors import FleetError
from thrifty.kubernetes import config
from thrifty.kubernetes.config import find_cluster


def write(path: Path, cluster: dict[str, Any], user: dict[str, Any], **context: str) -> str:
    """A kubeconfig with one context."""
    text = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", **context}}],
    }
    path.write_text(yaml.safe_dump(text))
    return str(path)


def test_a_token_an_authority_and_a_namespace(tmp_path: Path) -> None:
    authority = trustme.CA()
    pem = authority.cert_pem.bytes()
    path = write(
        tmp_path / "config",
        {"server": "https://127.0.0.1:6443", "certificate-authority-data": base64.b64encode(pem)},
        {"token": "secret"}, namespace="models",
    )  # fmt: skip
    found = find_cluster(path)
    assert (found.origin.host, found.origin.port, found.namespace) == ("127.0.0.1", 6443, "models")
    assert found.read_token() == "secret"
    assert found.tls is not None
    assert found.tls.verify_mode is ssl.CERT_REQUIRED
    assert len(found.tls.get_ca_certs()) == 1, "no authority but the cluster's own"


def test_a_client_certificate_and_files_beside_the_kubeconfig(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    pair = authority.issue_cert("somebody@example.com")
    path = write(
        tmp_path / "config",
        {"server": "https://127.0.0.1", "certificate-authority": "ca.pem"},
        {
            "client-certificate-data": base64.b64encode(pair.cert_chain_pems[0].bytes()),
            "client-key-data": base64.b64encode(pair.private_key_pem.bytes()),
        },
    )  # fmt: skip
    found = find_cluster(path)
    assert found.origin.port == 443
    assert found.read_token() is None
    assert found.namespace == "default"


def test_the_account_of_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("models")
    monkeypatch.setattr(config, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = find_cluster()
    assert (found.origin.host, found.namespace) == ("10.0.0.1", "models")
    assert found.read_token() == "first"
    (tmp_path / "token").write_text("second")
    assert found.read_token() == "second", "tokens of pods are replaced while they run"


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({"exec": {"command": "aws"}}, "starts a program to log in"),
        ({"auth-provider": {"name": "gcp"}}, "logs in by an auth-provider"),
        ({"username": "a", "password": "b"}, "logs in by a password"),
        ({"token": "t", "as": "root"}, "impersonation"),
    ],
)
def test_what_a_kubeconfig_may_not_ask_is_refused_with_what_to_do(
    tmp_path: Path, user: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "config", {"server": "https://127.0.0.1"}, user)
    with pytest.raises(FleetError, match=words) as error:
        find_cluster(path)
    assert "kubectl create token" in str(error.value)


def test_where_nothing_is_known_it_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(FleetError, match=r"name one in fleet\.kubeconfig"):
        find_cluster()
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/a:{tmp_path}/b")
    with pytest.raises(FleetError, match="names 2 files"):
        find_cluster()
    path = write(tmp_path / "config", {"server": "https://127.0.0.1"}, {})
    with pytest.raises(FleetError, match="no entry 'other' among its contexts"):
        find_cluster(path, "other")
    with pytest.raises(FleetError, match="proxy-url"):
        find_cluster(write(tmp_path / "p", {"server": "https://h", "proxy-url": "http://p"}, {}))
