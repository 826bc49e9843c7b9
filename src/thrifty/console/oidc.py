"""An OpenID Connect provider as this service needs it: where to send a person, and who came back.

Authorization code flow with PKCE (S256), state and nonce. The ID token's signature is checked against
the provider's published keys, which are read again when a token names an unknown one; its issuer,
audience, times and nonce are checked as OpenID Connect Core 3.1.3.7 asks. Tokens are used once and
kept nowhere.

Everything here blocks; callers use threads. `requests`, `authlib` and `joserfc` are imported on
first use: gateways where nobody signs in this way do without.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from thrifty.db.sign_ins import NAME_PREFIX, Person
from thrifty.errors import ThriftyError
from thrifty.types import Role
from thrifty.untrusted_text import sanitize_line

TIMEOUT_S = 10.0
FRESH_S = 3600.0
"""How long the provider's description and keys are used before they are read again."""
MIN_REFRESH_S = 10.0
"""Unknown keys make us read the provider's keys anew, but no more often than this."""
MAX_ANSWER_BYTES = 1_000_000
CALLBACK = "/console/signed-in"
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"
)  # fmt: skip
"""Signatures by keys of the provider's own: never `none`, and none that our secret could make."""
NEEDED = "signing in through an identity provider needs pip install 'thrifty[oidc]'"


class OidcSettings(msgspec.Struct, frozen=True):
    """What `gateway.oidc` of the spec says."""

    issuer: str
    client_id: str
    url: str
    """Where browsers reach this service, without a slash at the end."""
    client_secret_env: str | None = None
    name: str = "your organisation"
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    claim: str = "groups"
    roles: dict[str, tuple[str, ...]] = {}
    tenant: str = "console"
    session_s: float = 8 * 3600.0
    leeway_s: float = 60.0

    @property
    def redirect_uri(self) -> str:
        """Where the provider sends people back to."""
        return self.url + CALLBACK

    @property
    def rules(self) -> str:
        """Names the rules by which roles are given: sign-ins by other rules do not count."""
        given = (self.issuer, self.client_id, self.claim, self.roles, self.tenant)
        return blake2b(msgspec.json.encode(given), digest_size=8).hexdigest()


class SignInFault(ThriftyError):
    """Somebody cannot be signed in. `code` says why to the console, the message to the log."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Challenge:
    """What a sign-in that has begun must be completed with."""

    state: str
    nonce: str
    verifier: str


class Provider:
    """The provider that the spec names. Thread-safe."""

    def __init__(self, settings: OidcSettings, environment: Mapping[str, str] = os.environ) -> None:
        self._settings = settings
        self._environment = environment
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._metadata_s = float("-inf")
        self._keys: Any = None
        self._keys_s = float("-inf")

    def make_url(self, challenge: Challenge) -> str:
        """Where a person signs in. Raises `SignInFault`."""
        endpoint = self._find_endpoint("authorization_endpoint")
        session = self._open_session()
        url, _ = session.create_authorization_url(
            endpoint, state=challenge.state, nonce=challenge.nonce,
            code_verifier=challenge.verifier,
        )  # fmt: skip
        return str(url)

    def identify(self, code: str, issuer: str | None, challenge: Challenge) -> Person:
        """Who a code stands for, with the highest role that the spec gives. `issuer` is what the
        answer says that it comes from (RFC 9207), if it does. Raises `SignInFault`.
        """
        metadata = self._read_metadata()
        promised = metadata.get("authorization_response_iss_parameter_supported") is True
        if (issuer is None and promised) or issuer not in (None, self._settings.issuer):
            raise SignInFault("failed", "the answer does not come from the configured issuer")
        tokens = self._exchange(code, challenge)
        claims = self._verify(str(tokens.get("id_token") or ""), challenge.nonce)
        found = find_claim(claims, self._settings.claim)
        if found is None:
            claims = {
                **self._read_userinfo(str(tokens.get("access_token") or ""), claims),
                **claims,
            }
            found = find_claim(claims, self._settings.claim)
        role = choose_role(self._settings.roles, found)
        if role is None:
            raise SignInFault(
                "no_role",
                f"{_name(claims)} has no role here: no value of the claim "
                f"{self._settings.claim!r} is in gateway.oidc.roles",
            )
        ident = f"{self._settings.issuer}\0{claims['sub']}".encode()
        return Person(
            blake2b(ident, digest_size=8).hexdigest(), NAME_PREFIX + _name(claims), role,
            self._settings.tenant, self._settings.rules,
        )  # fmt: skip

    def _exchange(self, code: str, challenge: Challenge) -> Mapping[str, Any]:
        """The tokens for a code."""
        import requests
        from authlib.common.errors import AuthlibBaseError

        endpoint = self._find_endpoint("token_endpoint")
        session = self._open_session()
        try:
            tokens: Mapping[str, Any] = session.fetch_token(
                endpoint, grant_type="authorization_code", code=code,
                code_verifier=challenge.verifier, timeout=TIMEOUT_S,
            )  # fmt: skip
        except AuthlibBaseError as error:
            # Its description is the provider's, and may quote what was sent.
            raise SignInFault("failed", f"the provider refused the code: {error.error}") from None
        except (requests.RequestException, ValueError) as error:
            raise _unreachable(endpoint, error) from None
        finally:
            session.close()
        return tokens

    def _verify(self, token: str, nonce: str) -> dict[str, Any]:
        """The claims of an ID token that is meant for us, now."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        settings = self._settings
        offered = self._read_metadata().get("id_token_signing_alg_values_supported") or ["RS256"]
        allowed = [name for name in ALGORITHMS if name in offered]
        rules = jwt.JWTClaimsRegistry(
            leeway=round(settings.leeway_s),
            iss={"essential": True, "value": settings.issuer},
            aud={"essential": True, "value": settings.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            keys = self._read_keys(_read_key_id(token))
            claims: dict[str, Any] = jwt.decode(token, keys, algorithms=allowed).claims
            rules.validate(claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise SignInFault(
                "failed", f"the provider's ID token is not valid: {type(error).__name__}: {error}"
            ) from None
        party, audience = claims.get("azp"), claims["aud"]
        several = isinstance(audience, list) and len(audience) > 1
        if (party is None and several) or party not in (None, settings.client_id):
            raise SignInFault("failed", "the provider's ID token is meant for another client")
        if not isinstance(claims["sub"], str):
            raise SignInFault("failed", "the provider's ID token names nobody")
        return claims

    def _read_userinfo(self, token: str, claims: Mapping[str, Any]) -> dict[str, Any]:
        """More claims about the same person; none where the provider gives none."""
        endpoint = self._read_metadata().get("userinfo_endpoint")
        if not token or not isinstance(endpoint, str):
            return {}
        found = self._fetch(endpoint, {"authorization": f"Bearer {token}"})
        if found.get("sub") != claims["sub"]:
            raise SignInFault("failed", "the provider's userinfo is about another person")
        return found

    def _open_session(self) -> Any:
        try:
            from authlib.integrations.requests_client import OAuth2Session
        except ModuleNotFoundError:
            raise SignInFault("failed", NEEDED) from None
        settings, secret, method = self._settings, None, "none"
        if settings.client_secret_env is not None:
            secret = self._environment.get(settings.client_secret_env, "")
            if not secret:
                raise SignInFault(
                    "failed",
                    f"the variable {settings.client_secret_env} (client secret) is not set",
                )
            offered = self._read_metadata().get("token_endpoint_auth_methods_supported")
            post_only = offered and "client_secret_basic" not in offered
            method = "client_secret_post" if post_only else "client_secret_basic"
        session = OAuth2Session(
            settings.client_id, secret, token_endpoint_auth_method=method,
            scope=" ".join(settings.scopes), redirect_uri=settings.redirect_uri,
            code_challenge_method="S256",
        )  # fmt: skip
        session.max_redirects = 0  # a code goes where the provider says, and nowhere else
        return session

    def _find_endpoint(self, name: str) -> str:
        found = self._read_metadata().get(name)
        if not isinstance(found, str) or not found.startswith(("https://", "http://")):
            raise SignInFault("failed", f"the provider names no {name}")
        if self._settings.issuer.startswith("https://") and not found.startswith("https://"):
            raise SignInFault("failed", f"the provider's {name} is not encrypted")
        return found

    def _read_metadata(self) -> dict[str, Any]:
        """The provider's description of itself (OpenID Connect Discovery)."""
        with self._lock:
            if time.monotonic() - self._metadata_s < FRESH_S:
                return self._metadata
            base = self._settings.issuer.rstrip("/")
            found = self._fetch(f"{base}/.well-known/openid-configuration")
            if found.get("issuer") != self._settings.issuer:
                named = sanitize_line(found.get("issuer"), 200)
                raise SignInFault(
                    "failed",
                    f"the provider calls itself {named!r}, and gateway.oidc.issuer says "
                    f"{self._settings.issuer!r}; write it exactly as the provider does",
                )
            self._metadata, self._metadata_s = found, time.monotonic()
            return found

    def _read_keys(self, ident: str | None) -> Any:
        """The provider's keys; read again where none of them is `ident`."""
        from joserfc.jwk import KeySet

        endpoint = self._find_endpoint("jwks_uri")
        with self._lock:
            age_s = time.monotonic() - self._keys_s
            unknown = ident is not None and all(key.kid != ident for key in self._keys or ())
            if age_s >= FRESH_S or (unknown and age_s >= MIN_REFRESH_S):
                found = self._fetch(endpoint)
                self._keys = KeySet.import_key_set(
                    {"keys": [key for key in found.get("keys") or () if _is_for_signing(key)]}
                )
                self._keys_s = time.monotonic()
            return self._keys

    def _fetch(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A JSON object of the provider."""
        import requests

        try:
            with requests.get(
                url, headers=dict(headers or {}), timeout=TIMEOUT_S, allow_redirects=False,
                auth=_keep_headers, stream=True,
            ) as answer:  # fmt: skip
                if answer.status_code != 200:
                    raise SignInFault("unreachable", f"{url} answers {answer.status_code}")
                content = answer.raw.read(MAX_ANSWER_BYTES, decode_content=True)
            found = msgspec.json.decode(content)
        except (requests.RequestException, OSError, msgspec.DecodeError) as error:
            raise _unreachable(url, error) from None
        if not isinstance(found, dict):
            raise SignInFault("unreachable", f"{url} answers with no JSON object")
        return found


def find_claim(claims: Mapping[str, Any], path: str) -> list[str] | None:
    """The texts of a claim; dots lead into objects, unless a claim has them in its name. None where
    there is no such claim.
    """
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    if found is None:
        return None
    values = found if isinstance(found, list) else [found]
    return [str(one) for one in values if isinstance(one, str | int)]


def choose_role(roles: Mapping[str, tuple[str, ...]], values: list[str] | None) -> Role | None:
    """The highest role that one of the values gives."""
    have = {*(values or ()), "*"}
    for role in (Role.ADMIN, Role.OPERATOR, Role.VIEWER, Role.USER):
        if have & set(roles.get(role.value, ())):
            return role
    return None


def _name(claims: Mapping[str, Any]) -> str:
    """What the person is called: by a verified address, a name for signing in, or the subject."""
    names: Iterator[Any] = iter(
        (
            claims.get("email") if claims.get("email_verified", True) is True else None,
            claims.get("preferred_username"),
            claims.get("sub"),
        )
    )
    found = next((one for one in names if isinstance(one, str) and one.strip()), "somebody")
    return sanitize_line(found.strip(), 64 - len(NAME_PREFIX))


def _read_key_id(token: str) -> str | None:
    from joserfc import jws

    ident = jws.extract_compact(token.encode()).headers().get("kid")
    return ident if isinstance(ident, str) else None


def _is_for_signing(key: Any) -> bool:
    return isinstance(key, dict) and key.get("use", "sig") == "sig" and key.get("kty") != "oct"


def _keep_headers(request: Any) -> Any:
    """Keep requests from putting what `~/.netrc` says in the place of our headers."""
    return request


def _unreachable(url: str, error: Exception) -> SignInFault:
    reason = sanitize_line(str(error) or type(error).__name__, 300)
    return SignInFault("unreachable", f"{url} cannot be used: {reason}")
