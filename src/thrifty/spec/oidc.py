"""Signing in to the console through an identity provider (OpenID Connect)."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from thrifty.spec.observe import Variable, check_url
from thrifty.spec.section import Duration, Label, Section

MAX_SESSION_S = 86400.0


class OidcRolesSpec(Section):
    """Which values of the claim give which role; `*` is everybody who signs in. The highest counts."""

    admin: tuple[str, ...] = Field((), description="Values that give the role admin.")
    operator: tuple[str, ...] = Field((), description="Values that give the role operator.")
    viewer: tuple[str, ...] = Field((), description="Values that give the role viewer.")
    user: tuple[str, ...] = Field((), description="Values that give the role user.")

    @field_validator("admin", "operator", "viewer", "user", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @property
    def empty(self) -> bool:
        """Whether nobody gets a role."""
        return not (self.admin or self.operator or self.viewer or self.user)


class OidcSpec(Section):
    """An OpenID Connect provider whose users may sign in to the console. API keys go on working.
    Needs `pip install 'thrifty[oidc]'`.
    """

    issuer: str | None = Field(
        None,
        description="The provider's issuer, exactly as it names itself, such as "
        "`https://login.example.com/realms/acme`. Default: nobody signs in this way.",
    )
    client_id: str | None = Field(None, min_length=1, description="This service's client id there.")
    client_secret_env: Variable | None = Field(
        None,
        description="The environment variable that holds the client's secret. Default: a public "
        "client; PKCE is used in either case.",
    )
    url: str | None = Field(
        None,
        description="Where browsers reach this service, such as `https://llm.example.com`. The "
        "provider must allow the redirect URI `URL/console/signed-in`.",
    )
    name: str = Field(
        "your organisation",
        min_length=1,
        max_length=60,
        description="The provider's name, on the button.",
    )
    scopes: tuple[str, ...] = Field(
        ("openid", "profile", "email"), description="What is asked for; `openid` must be among it."
    )
    claim: str = Field(
        "groups",
        min_length=1,
        max_length=200,
        description="The claim with a person's groups or roles, in the ID token or else from the "
        "userinfo endpoint; dots lead into objects (`realm_access.roles`).",
    )
    roles: OidcRolesSpec = Field(
        default_factory=lambda: OidcRolesSpec(),
        description="Which values of the claim give which role. Who gets none cannot sign in.",
    )
    tenant: Label = Field(
        "console", description="The tenant of the requests that people make in the playground."
    )
    session: Duration = Field(
        8 * 3600.0,
        ge=60,
        le=MAX_SESSION_S,
        description="How long a person stays signed in; a role that is taken away at the provider "
        "holds until then.",
    )
    leeway: Duration = Field(
        60.0, le=300, description="How far the provider's clock and ours may be apart."
    )

    @field_validator("scopes", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("scopes")
    @classmethod
    def _check_scopes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in value:
            raise ValueError("must hold 'openid'")
        return value

    @field_validator("issuer", "url")
    @classmethod
    def _check_urls(cls, value: str | None) -> str | None:
        checked = check_url(value)
        if value is None or checked is None:
            return None
        parts = urlsplit(checked)
        if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
            raise ValueError("must begin with 'https://': it carries what people sign in with")
        return value

    @model_validator(mode="after")
    def _check_whole(self) -> OidcSpec:
        given = {"issuer": self.issuer, "client_id": self.client_id, "url": self.url}
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"also needs {' and '.join(repr(name) for name in missing)}")
        if self.issuer is not None and self.roles.empty:
            raise ValueError("gives nobody a role; write, say, 'roles: {viewer: \"*\"}'")
        if self.issuer is None and self != OidcSpec.model_construct():
            raise ValueError("needs 'issuer', 'client_id' and 'url'")
        return self

    def describe(self) -> dict[str, Any] | None:
        """As gateway workers get it (`console.oidc.OidcSettings`); None: nobody signs in this way."""
        if self.issuer is None or self.client_id is None or self.url is None:
            return None
        return {
            "issuer": self.issuer,
            "client_id": self.client_id,
            "client_secret_env": self.client_secret_env,
            "url": self.url.rstrip("/"),
            "name": self.name,
            "scopes": list(self.scopes),
            "claim": self.claim,
            "roles": self.roles.model_dump(mode="json"),
            "tenant": self.tenant,
            "session_s": self.session,
            "leeway_s": self.leeway,
        }


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
