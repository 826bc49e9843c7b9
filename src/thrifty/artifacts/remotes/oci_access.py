"""Access to an OCI registry: credentials as container tools keep them, and bearer tokens.

Credentials are read from `$DOCKER_CONFIG/config.json` (default `~/.docker`), podman's
`$REGISTRY_AUTH_FILE`, or the credential helper that these name. Tokens are asked for by the token
protocol of the distribution project, and kept in memory.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from thrifty.artifacts.remotes.http_calls import call, check, read_json
from thrifty.artifacts.remotes.reference import require_safe_url
from thrifty.errors import RemoteError

HELPER_TIMEOUT_S = 60.0
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_HELPER = re.compile(r"[a-zA-Z0-9._-]{1,64}")
_HUB = "https://index.docker.io/v1/"


class RegistryAccess:
    """The `Authorization` headers for one registry."""

    def __init__(self, session: requests.Session, host: str) -> None:
        self._session = session
        self._host = host
        self._tokens: dict[str, str] = {}
        self._basic: str | None = None

    def header(self, scope: str) -> dict[str, str]:
        """The header for a request of this scope, as far as the registry has asked for one."""
        if token := self._tokens.get(scope):
            return {"Authorization": f"Bearer {token}"}
        return {"Authorization": f"Basic {self._basic}"} if self._basic else {}

    def answer(self, challenge: str, scope: str) -> bool:
        """Get what a registry's challenge asks for; returns whether there is anything new."""
        scheme, _, rest = challenge.partition(" ")
        known = find_credentials(self._host)
        if scheme.lower() == "basic":
            if known is None or self._basic is not None:
                return False
            self._basic = base64.b64encode(":".join(known).encode()).decode()
            return True
        if scheme.lower() != "bearer":
            raise RemoteError(
                f"{self._host} asks for the authentication {scheme!r:.40}, which is unknown"
            )
        values = dict(_PARAMETER.findall(rest))
        realm = values.get("realm", "")
        require_safe_url(realm, f"the token server of {self._host}")
        token = self._fetch_token(realm, values.get("service", ""), scope, known)
        fresh = token != self._tokens.get(scope)
        self._tokens[scope] = token
        return fresh

    def _fetch_token(
        self, realm: str, service: str, scope: str, known: tuple[str, str] | None
    ) -> str:
        headers = {}
        if known is not None:
            pair = base64.b64encode(":".join(known).encode()).decode()
            headers = {"Authorization": f"Basic {pair}"}
        url = urlsplit(realm)._replace(query="").geturl()
        response = call(
            self._session,
            "GET",
            realm,
            headers=headers,
            params={"service": service, "scope": scope},
        )
        check(response, url, "a request for a token", expected=(200,))
        found = read_json(response, url)
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str):
            raise RemoteError(f"{url} gave no token")
        return token


def find_credentials(host: str) -> tuple[str, str] | None:
    """The user name and password for a registry, from where container tools keep them."""
    for path in _list_files():
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise RemoteError(f"{path} cannot be read: {error}") from None
        if isinstance(settings, dict) and (found := _find_in(settings, host, path)):
            return found
    return None


def _list_files() -> list[Path]:
    folder = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser()
    named = os.environ.get("REGISTRY_AUTH_FILE")
    return [*([Path(named)] if named else []), folder / "config.json"]


def _find_in(settings: dict[str, Any], host: str, path: Path) -> tuple[str, str] | None:
    names = [host, f"https://{host}", *([_HUB] if host.endswith("docker.io") else [])]
    helpers = settings.get("credHelpers") or {}
    for name in names:
        entry = (settings.get("auths") or {}).get(name) or {}
        if text := entry.get("auth"):
            try:
                user, colon, password = (
                    base64.b64decode(text, validate=True).decode().partition(":")
                )
            except (binascii.Error, ValueError):
                colon = ""
            if not colon:
                raise RemoteError(f"{path} has no valid entry for {host}; log in to it again")
            return user, password
        helper = helpers.get(name) or settings.get("credsStore")
        if helper and (found := _ask_helper(str(helper), name)):
            return found
    return None


def _ask_helper(helper: str, server: str) -> tuple[str, str] | None:
    """What `docker-credential-HELPER get` says; None where it knows nothing of the server."""
    if not _HELPER.fullmatch(helper):
        raise RemoteError(f"{helper!r:.80} is not the name of a credential helper")
    command = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [command, "get"], input=server, capture_output=True, text=True, timeout=HELPER_TIMEOUT_S
        )
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    except FileNotFoundError:
        raise RemoteError(
            f"{command} is not installed, and the registry's settings name it"
        ) from None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise RemoteError(f"{command} failed; try: echo {server} | {command} get") from None
    user, password = found.get("Username"), found.get("Secret")
    return (user, password) if isinstance(user, str) and isinstance(password, str) else None
