"""Signing in through an identity provider: who gets in, and every way in which nobody does."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from httpx import AsyncClient, Response

from tests.console.identity import CLIENT, SECRET, Identity, make_key, running_identity
from tests.console.site import Site, running_site
from thrifty.console import oidc as oidc_module
from thrifty.console.oidc import (
    Challenge,
    OidcSettings,
    Provider,
    SignInFault,
    choose_role,
    find_claim,
)
from thrifty.db.audit import list_acts
from thrifty.db.sign_ins import end_sign_ins
from thrifty.fleet.ports import find_free_port
from thrifty.types import Role

ROLES: dict[str, tuple[str, ...]] = {"operator": ("ml-ops",), "viewer": ("*",)}
CHALLENGE = Challenge("state", "nonce", "v" * 64)


@pytest.fixture
def identity() -> Iterator[Identity]:
    with running_identity() as found:
        yield found


def settings(identity: Identity, **fields: Any) -> OidcSettings:
    return OidcSettings(**{
        "issuer": identity.url, "client_id": CLIENT, "url": "http://127.0.0.1:1", "roles": ROLES,
        "client_secret_env": "OIDC_SECRET", **fields,
    })  # fmt: skip


def provider(identity: Identity, **fields: Any) -> Provider:
    return Provider(settings(identity, **fields), {"OIDC_SECRET": SECRET})


def identify(made: Provider, identity: Identity, issuer: str | None = None) -> Any:
    """The whole way of one sign-in, the browser left out."""
    asked = {k: v[0] for k, v in parse_qs(urlsplit(made.make_url(CHALLENGE)).query).items()}
    identity.nonce, identity.challenge = asked["nonce"], asked["code_challenge"]
    return made.identify("good", issuer, CHALLENGE)


def test_the_provider_is_asked_with_pkce_state_and_nonce(identity: Identity) -> None:
    url = urlsplit(provider(identity).make_url(CHALLENGE))
    asked = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{identity.url}/auth"
    assert asked.pop("code_challenge")
    assert asked == {
        "response_type": "code", "client_id": CLIENT, "state": "state", "nonce": "nonce",
        "scope": "openid profile email", "redirect_uri": "http://127.0.0.1:1/console/signed-in",
        "code_challenge_method": "S256",
    }  # fmt: skip


def test_a_person_gets_the_highest_role_of_the_claim(identity: Identity) -> None:
    person = identify(provider(identity), identity)
    assert (person.name, person.role, person.tenant) == (
        "oidc:ann@example.com", Role.OPERATOR, "console",
    )  # fmt: skip
    again = identify(provider(identity), identity)
    assert again.id == person.id
    identity.claims = {"sub": "bob-2", "email": None, "groups": ["staff"]}
    other = identify(provider(identity), identity)
    assert (other.name, other.role) == ("oidc:bob-2", Role.VIEWER)
    assert other.id != person.id
    form = identity.forms[-1]
    assert form["authorization"].startswith("Basic ")
    assert "client_secret" not in form
    identity.claims = {"email_verified": False, "preferred_username": "ann\nevil"}
    assert identify(provider(identity), identity).name == "oidc:ann\\nevil"


def test_a_client_without_a_secret_sends_none(identity: Identity) -> None:
    identify(provider(identity, client_secret_env=None), identity)
    assert identity.forms[-1]["client_id"] == CLIENT
    assert identity.forms[-1]["authorization"] == ""
    identity.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    identify(provider(identity), identity)
    assert identity.forms[-1]["client_secret"] == SECRET
    with pytest.raises(SignInFault, match=r"OIDC_SECRET .* is not set"):
        Provider(settings(identity), {}).make_url(CHALLENGE)


def test_claims_that_are_not_in_the_token_come_from_userinfo(identity: Identity) -> None:
    identity.claims = {"groups": None}
    identity.userinfo = {"sub": "ann-1", "groups": ["ml-ops"], "email": "mallory@example.com"}
    person = identify(provider(identity), identity)
    assert (person.role, person.name) == (Role.OPERATOR, "oidc:ann@example.com")
    identity.userinfo = {"sub": "mallory", "groups": ["ml-ops"]}
    with pytest.raises(SignInFault, match="about another person"):
        identify(provider(identity), identity)


@pytest.mark.parametrize(
    "spoiled",
    [
        {"claims": {"iss": "https://elsewhere.example"}},
        {"claims": {"aud": "another-client"}},
        {"claims": {"aud": [CLIENT, "another"], "azp": "another"}},
        {"claims": {"aud": [CLIENT, "another"]}},
        {"claims": {"azp": "another"}},
        {"claims": {"nonce": "of-another-sign-in"}},
        {"claims": {"nonce": None}},
        {"claims": {"exp": 1_000_000_000}},
        {"claims": {"exp": None}},
        {"claims": {"iat": 8_000_000_000}},
        {"claims": {"iat": None}},
        {"claims": {"sub": None}},
        {"claims": {"sub": ["ann"]}},
        {"algorithm": "none"},
        {"algorithm": "HS256"},
        {"published": ["one"]},  # another key of the same name
        {"published": []},
        {"token_status": 500},
        {"metadata": {"authorization_response_iss_parameter_supported": True}},
    ],
    ids=str,
)
def test_what_is_forged_or_meant_for_others_signs_nobody_in(
    identity: Identity, spoiled: dict[str, Any]
) -> None:
    for name, value in spoiled.items():
        made = [make_key(one) for one in value] if name == "published" else value
        setattr(identity, name, made)
    with pytest.raises(SignInFault) as caught:
        identify(provider(identity), identity)
    assert caught.value.code == ("unreachable" if "token_status" in spoiled else "failed")
    assert SECRET not in str(caught.value)


def test_an_answer_of_another_issuer_is_refused(identity: Identity) -> None:
    identify(provider(identity), identity, identity.url)
    with pytest.raises(SignInFault, match="does not come from the configured issuer"):
        identify(provider(identity), identity, "https://elsewhere.example")
    identity.metadata = {"issuer": "https://elsewhere.example"}
    with pytest.raises(SignInFault, match="calls itself"):
        identify(provider(identity), identity)


def test_clocks_may_be_a_minute_apart(identity: Identity) -> None:
    now_s = int(time.time())
    identity.claims = {"iat": now_s + 40, "exp": now_s + 300}
    assert identify(provider(identity), identity)
    identity.claims = {"iat": now_s - 400, "exp": now_s - 40}
    assert identify(provider(identity), identity)
    with pytest.raises(SignInFault, match="Expired"):
        identify(provider(identity, leeway_s=0.0), identity)


def test_rotated_keys_are_found_and_old_ones_end(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = provider(identity)
    assert identify(made, identity)
    assert identify(made, identity)
    assert identity.asked.count("/keys") == 1, "keys are kept"
    monkeypatch.setattr(oidc_module, "MIN_REFRESH_S", 0.0)
    old, identity.key = identity.key, make_key("two")
    assert identify(made, identity)
    assert identity.asked.count("/keys") == 2
    identity.key, identity.published = old, [identity.key]
    with pytest.raises(SignInFault):
        identify(made, identity)
    monkeypatch.setattr(oidc_module, "MIN_REFRESH_S", 3600.0)
    count = identity.asked.count("/keys")
    with pytest.raises(SignInFault):
        identify(made, identity)
    assert identity.asked.count("/keys") == count, "unknown keys do not make us ask all the time"


def test_who_has_no_role_is_told_so(identity: Identity) -> None:
    made = provider(identity, roles={"admin": ("root",)})
    with pytest.raises(SignInFault, match=r"ann@example\.com has no role here") as caught:
        identify(made, identity)
    assert caught.value.code == "no_role"


def test_claims_are_found_by_name_and_by_path() -> None:
    claims = {"a": {"b": ["x", 7, None]}, "a.b": "flat", "n": {"m": "one"}}
    assert find_claim(claims, "a.b") == ["flat"]
    assert find_claim(claims, "n.m") == ["one"]
    assert find_claim({"a": {"b": ["x", 7, None]}}, "a.b") == ["x", "7"]
    assert find_claim(claims, "n.m.o") is None
    assert choose_role({"admin": ("x",), "user": ("*",)}, ["x"]) is Role.ADMIN
    assert choose_role({"admin": ("x",), "user": ("*",)}, None) is Role.USER
    assert choose_role({"admin": ("x",)}, ["y"]) is None


# In the browser's place: a real gateway


@asynccontextmanager
async def serving(
    identity: Identity, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> AsyncIterator[tuple[Site, AsyncClient]]:
    monkeypatch.setenv("OIDC_SECRET", SECRET)
    port = find_free_port()
    made = settings(identity, url=f"http://127.0.0.1:{port}", **fields)
    async with (
        running_site(folder, port=port, oidc=made) as site,
        AsyncClient(base_url=site.url, timeout=60) as client,
    ):
        yield site, client


async def begin(client: AsyncClient, identity: Identity) -> dict[str, str]:
    """Go to the provider; what it was asked."""
    sent = await client.get("/console/sign-in")
    assert sent.status_code == 303
    asked = {k: v[0] for k, v in parse_qs(urlsplit(sent.headers["location"]).query).items()}
    identity.nonce, identity.challenge = asked["nonce"], asked["code_challenge"]
    return asked


async def come_back(client: AsyncClient, **query: str) -> Response:
    return await client.get("/console/signed-in", params=query)


async def test_a_person_signs_in_works_and_is_signed_out(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    async with serving(identity, tmp_path, monkeypatch) as (site, client):
        anybody = (await client.get("/api/v1/session")).json()
        assert (anybody["keys_exist"], anybody["role"], anybody["provider"]) == (
            True, None, "your organisation",
        )  # fmt: skip
        assert (await client.get("/v1/models")).status_code == 401, "nobody is let in without"
        asked = await begin(client, identity)
        back = await come_back(client, code="good", state=asked["state"])
        assert (back.status_code, back.headers["location"]) == (303, f"{site.url}/console")
        cookies = back.headers.get_list("set-cookie")
        session = next(one for one in cookies if one.startswith("thrifty-session="))
        assert "HttpOnly" in session
        assert "SameSite=Strict" in session
        assert "Max-Age=28800" in session
        assert any(one.startswith("thrifty-sign-in=;") for one in cookies)
        who = (await client.get("/api/v1/session")).json()
        assert (who["name"], who["role"], who["tenant"]) == (
            "oidc:ann@example.com", "operator", "console",
        )  # fmt: skip
        assert (await client.get("/api/v1/status")).status_code == 200
        assert (await client.get("/api/v1/keys")).status_code == 403
        path = "/api/v1/deployments/assistant/traffic"
        other = {"origin": "http://evil.example"}
        refused = await client.put(path, json={"weights": {"stable": 1}}, headers=other)
        assert refused.status_code == 403, "another site's page"
        changed = await client.put(path, json={"weights": {"stable": 1}})
        assert changed.status_code == 200, changed.text
        # The code and the cookie are of no use again.
        again = await come_back(client, code="good", state=asked["state"])
        assert again.headers["location"].endswith("/console?sign-in=expired")
        kept = dict(client.cookies)
        refused = await client.request("DELETE", "/api/v1/session", headers=other)
        assert refused.status_code == 403
        assert (await client.delete("/api/v1/session")).status_code == 200
        async with AsyncClient(base_url=site.url, cookies=kept, timeout=60) as thief:
            assert (await thief.get("/api/v1/status")).status_code == 401
        acts = [one.act for one in list_acts(site.database, 10)]
        assert acts[:2] == ["change.traffic", "console.sign_in"]
    for secret in (SECRET, "good", asked["state"], asked["nonce"], "Bearer at"):
        assert not any(
            secret in one.getMessage() for one in caplog.records if "thrifty" in one.name
        )


async def test_what_comes_back_wrongly_signs_nobody_in(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(identity, tmp_path, monkeypatch) as (site, client):

        async def fails(why: str, **query: str) -> None:
            back = await come_back(client, **query)
            assert back.status_code == 303
            assert back.headers["location"] == f"{site.url}/console?sign-in={why}"
            assert "thrifty-session" not in str(back.headers)
            assert (await client.get("/api/v1/session")).json()["role"] is None

        await fails("expired", code="good", state="x")
        await begin(client, identity)
        await fails("expired", code="good", state="of-somebody-else")
        asked = await begin(client, identity)
        # A code that another browser asked for: the cookie there is another one.
        async with AsyncClient(base_url=site.url, timeout=60) as other:
            sent = await come_back(other, code="good", state=asked["state"])
            assert sent.headers["location"].endswith("sign-in=expired")
        await fails("denied", error="access_denied", state=asked["state"])
        asked = await begin(client, identity)
        await fails("failed", error="<script>", state=asked["state"])
        asked = await begin(client, identity)
        await fails("failed", code="guessed", state=asked["state"])
        asked = await begin(client, identity)
        signed = client.cookies["thrifty-sign-in"]
        client.cookies.clear()
        for forged in (f"{signed[:-1]}{'1' if signed[-1] == '0' else '0'}", f"A{signed[1:]}"):
            headers = {"cookie": f"thrifty-sign-in={forged}"}
            query = {"code": "good", "state": asked["state"]}
            sent = await client.get("/console/signed-in", params=query, headers=headers)
            assert sent.headers["location"].endswith("sign-in=expired")
        client.cookies.clear()
        asked = await begin(client, identity)
        identity.claims = {"groups": []}
        assert (await come_back(client, code="good", state=asked["state"])).status_code == 303
        assert (await client.get("/api/v1/session")).json()["role"] == "viewer"


async def test_sign_ins_end_with_the_rules_and_at_a_word(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(identity, tmp_path, monkeypatch) as (site, client):
        asked = await begin(client, identity)
        await come_back(client, code="good", state=asked["state"])
        assert (await client.get("/api/v1/session")).json()["role"] == "operator"
        # A spec with other rules, as the next worker reads it.
        site.parts.table.sign_in_rules = "others"
        await site.parts.reader.refresh()
        assert (await client.get("/api/v1/session")).json()["role"] is None
        site.parts.table.sign_in_rules = settings(identity).rules
        await site.parts.reader.refresh()
        assert (await client.get("/api/v1/session")).json()["role"] == "operator"
        end_sign_ins(site.database, None, "root")
        await site.parts.reader.refresh()
        assert (await client.get("/api/v1/session")).json()["role"] is None


async def test_a_provider_that_is_away_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Identity(url=f"http://127.0.0.1:{find_free_port()}")
    async with serving(away, tmp_path, monkeypatch) as (site, client):
        sent = await client.get("/console/sign-in")
        assert sent.headers["location"] == f"{site.url}/console?sign-in=unreachable"
