"""An identity provider whose answers a test may spoil: discovery, keys, tokens and userinfo over
real HTTP. `oidc_provider.mjs` runs one that others wrote.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

CLIENT, SECRET = "thrifty", "client-secret-for-tests"


def make_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


@dataclass
class Identity:
    """What the provider says. A test changes it between steps."""

    url: str = ""
    key: RSAKey = field(default_factory=lambda: make_key("one"))
    published: list[RSAKey] | None = None
    """The keys that it shows; None: the one that it signs with."""
    claims: dict[str, Any] = field(default_factory=dict)
    """In place of those of a good token; None takes a claim away."""
    userinfo: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    nonce: str = ""
    challenge: str = ""
    token_status: int = 200
    asked: list[str] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)

    def make_token(self) -> str:
        now_s = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "sub": "ann-1", "email": "ann@example.com",
            "iat": now_s, "exp": now_s + 300, "nonce": self.nonce, "groups": ["staff", "ml-ops"],
        } | self.claims  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.algorithm == "none":
            head, body = ({"alg": "none"}, claims)
            return ".".join([*(_encode(json.dumps(one).encode()) for one in (head, body)), ""])
        if self.algorithm == "HS256":
            # By a secret that others than the provider know.
            secret = OctKey.import_key(SECRET)
            return jwt.encode({"alg": "HS256", "kid": "one"}, claims, secret)
        head = {"alg": self.algorithm, "kid": self.key.kid}
        return jwt.encode(head, claims, self.key, algorithms=[self.algorithm])

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self.asked.append(path)
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.url, "authorization_endpoint": f"{self.url}/auth",
                "token_endpoint": f"{self.url}/token", "jwks_uri": f"{self.url}/keys",
                "userinfo_endpoint": f"{self.url}/me",
                "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            } | self.metadata  # fmt: skip
        if path == "/keys":
            shown = [self.key] if self.published is None else self.published
            return 200, {"keys": [key.as_dict(private=False) for key in shown]}
        if path == "/me":
            return 200, self.userinfo or {"sub": "ann-1"}
        assert path == "/token", path
        self.forms.append(form)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if _encode(digest) != self.challenge or form["code"] != "good":
            return 400, {"error": "invalid_grant", "error_description": form["code"]}
        if self.token_status != 200:
            return self.token_status, {"error": "server_error"}
        return 200, {"access_token": "at", "token_type": "Bearer", "id_token": self.make_token()}


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextlib.contextmanager
def running_identity() -> Iterator[Identity]:
    """The provider on a free port."""
    identity = Identity()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self._respond(form | {"authorization": self.headers.get("authorization", "")})

        def _respond(self, form: dict[str, str]) -> None:
            status, found = identity.answer(self.path, form)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    identity.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield identity
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
