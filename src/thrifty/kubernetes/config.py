"""Where the API server is, and who we are: the pod's own account in a cluster, or a kubeconfig.

What a kubeconfig may ask of us beyond a token or a client certificate is refused with what to do: we
start no programs for it, and know no clouds' own ways to log in.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import FleetError
from thrifty.http.origin import Origin, parse_origin

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its account's token, the cluster's certificate and its namespace."""
KUBECONFIG_VARIABLE = "KUBECONFIG"
_DEFAULT_KUBECONFIG = Path("~/.kube/config")
_HOW_TO_LOG_IN = (
    "give the user a token (kubectl create token ACCOUNT) or a client certificate in a kubeconfig "
    "of its own, and name that file in fleet.kubeconfig"
)


@dataclass(frozen=True)
class Cluster:
    """An API server, and how to speak to it."""

    origin: Origin
    tls: ssl.SSLContext | None
    """None for plain HTTP, such as `kubectl proxy` offers."""
    read_token: Callable[[], str | None]
    """Gives the token for the next request: those of pods are replaced every hour."""
    namespace: str
    """Where the account, or the context, belongs."""
    source: str
    """What was read, for messages."""


def find_cluster(kubeconfig: str | None = None, context: str | None = None) -> Cluster:
    """The cluster that a file names, or that this process runs in, or of the user's own kubeconfig.
    Raises `FleetError`.
    """
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
    if kubeconfig is None and host and (ACCOUNT / "token").exists():
        return _read_account(host, port or "443")
    path = Path(kubeconfig).expanduser() if kubeconfig else _find_kubeconfig()
    return _read_kubeconfig(path, context)


def _read_account(host: str, port: str) -> Cluster:
    try:
        tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        namespace = (ACCOUNT / "namespace").read_text().strip()
    except (OSError, ssl.SSLError) as error:
        raise FleetError(f"the pod's account in {ACCOUNT} cannot be used: {error}") from None
    address = f"[{host}]" if ":" in host else host
    return Cluster(
        parse_origin(f"https://{address}:{port}"), tls, _read_from(ACCOUNT / "token"), namespace,
        f"the pod's account in {ACCOUNT}",
    )  # fmt: skip


def _find_kubeconfig() -> Path:
    named = [one for one in os.environ.get(KUBECONFIG_VARIABLE, "").split(os.pathsep) if one]
    if len(named) > 1:
        raise FleetError(
            f"{KUBECONFIG_VARIABLE} names {len(named)} files; name the one to use in fleet.kubeconfig"
        )
    path = Path(named[0]) if named else _DEFAULT_KUBECONFIG.expanduser()
    if not path.is_file():
        raise FleetError(
            "no Kubernetes cluster is known here: this is no pod with an account, and there is no "
            f"kubeconfig at {path}; name one in fleet.kubeconfig or {KUBECONFIG_VARIABLE}"
        )
    return path


def _read_kubeconfig(path: Path, context: str | None) -> Cluster:
    import yaml

    try:
        whole = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FleetError(f"the kubeconfig {path} cannot be read: {error}") from None
    if not isinstance(whole, dict):
        raise FleetError(f"{path} is not a kubeconfig")
    name = context or whole.get("current-context")
    chosen = _pick(path, whole, "contexts", "context", name)
    cluster = _pick(path, whole, "clusters", "cluster", chosen.get("cluster"))
    user = _pick(path, whole, "users", "user", chosen.get("user")) if chosen.get("user") else {}
    _refuse_unknown_ways(path, cluster, user)
    origin = parse_origin(str(cluster.get("server") or ""))
    tls = _make_tls(path, cluster, user) if origin.tls else None
    return Cluster(
        origin, tls, _find_token(path, user), str(chosen.get("namespace") or "default"),
        f"the context {name!r} of {path}",
    )  # fmt: skip


def _pick(path: Path, whole: Mapping[str, Any], kind: str, key: str, name: Any) -> dict[str, Any]:
    for one in whole.get(kind) or ():
        if one.get("name") == name:
            found: dict[str, Any] = one.get(key) or {}
            return found
    known = ", ".join(str(one.get("name")) for one in whole.get(kind) or ()) or "none"
    raise FleetError(f"{path} has no entry {name!r} among its {kind} ({known})")


def _refuse_unknown_ways(path: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    for key, what in (
        ("exec", "starts a program to log in (exec), and Thrifty starts none"),
        ("auth-provider", "logs in by an auth-provider, which Thrifty does not know"),
        ("username", "logs in by a password, which Kubernetes does not take any more"),
        ("as", "acts as somebody else (impersonation)"),
    ):
        if user.get(key):
            raise FleetError(f"the user in {path} {what}; {_HOW_TO_LOG_IN}")
    for key in ("proxy-url", "tls-server-name"):
        if cluster.get(key):
            raise FleetError(
                f"the cluster in {path} sets {key}, which Thrifty does not know; use an address that "
                "needs none"
            )


def _make_tls(path: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        authority = _read_data(path, cluster, "certificate-authority")
        tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        certificate = _read_data(path, user, "client-certificate")
        key = _read_data(path, user, "client-key")
        if certificate and key:
            _load_pair(tls, certificate, key)
    except (OSError, ValueError) as error:
        raise FleetError(f"a certificate in {path} cannot be used: {error}") from None
    return tls


def _read_data(path: Path, section: Mapping[str, Any], name: str) -> bytes | None:
    """What a kubeconfig holds itself, or names as a file relative to itself."""
    data = section.get(f"{name}-data")
    if data:
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error:
            raise ValueError(f"{name}-data is not base64") from None
    named = section.get(name)
    return (path.parent / Path(named).expanduser()).read_bytes() if named else None


def _load_pair(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Python reads a key from a file alone; ours is private and gone at once."""
    with tempfile.NamedTemporaryFile(prefix="thrifty-", suffix=".pem") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        tls.load_cert_chain(file.name, password="")


def _find_token(path: Path, user: Mapping[str, Any]) -> Callable[[], str | None]:
    token = user.get("token")
    if token:
        return lambda: str(token)
    if user.get("tokenFile"):
        return _read_from(path.parent / Path(user["tokenFile"]).expanduser())
    return lambda: None


def _read_from(path: Path) -> Callable[[], str | None]:
    def read() -> str:
        try:
            return path.read_text().strip()
        except OSError as error:
            raise FleetError(f"the token in {path} cannot be read: {error.strerror}") from None

    return read
