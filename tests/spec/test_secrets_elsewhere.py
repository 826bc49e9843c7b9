"""What a spec says of keys and of an identity provider; secrets themselves never stand in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.control.test_http_spec import allow, refuse
from thrifty.control.applied import AppliedSpec
from thrifty.control.gateway_settings import describe_gateway
from thrifty.db.desired_state import DesiredService
from thrifty.errors import SpecError
from thrifty.home import Home
from thrifty.spec import parse_spec

OIDC: dict[str, Any] = {
    "issuer": "https://login.example.com/realms/acme", "client_id": "thrifty",
    "url": "https://llm.example.com/", "roles": {"admin": "platform", "viewer": "*"},
}  # fmt: skip


def fault(spec: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(spec)
    return str(caught.value)


def test_a_provider_is_described_for_the_gateway() -> None:
    assert describe_gateway(parse_spec({}).spec)["oidc"] is None
    found = describe_gateway(parse_spec({"gateway": {"oidc": OIDC}}).spec)["oidc"]
    assert found["url"] == "https://llm.example.com"
    assert found["issuer"] == OIDC["issuer"], "as it stands, slash or none"
    assert found["roles"] == {"admin": ["platform"], "operator": [], "viewer": ["*"], "user": []}
    assert (found["session_s"], found["leeway_s"]) == (8 * 3600.0, 60.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"issuer": None}, "also needs 'issuer'"),
        ({"url": None, "client_id": None}, "also needs 'client_id' and 'url'"),
        ({"issuer": "http://login.example.com"}, "must begin with 'https://'"),
        ({"url": "http://llm.example.com"}, "must begin with 'https://'"),
        ({"issuer": "https://user:secret@login.example.com"}, "must be a plain URL"),
        ({"roles": {}}, "gives nobody a role"),
        ({"roles": {"root": "x"}}, "root"),
        ({"scopes": "email"}, "must hold 'openid'"),
        ({"session": "3d"}, "86400"),
        ({"leeway": "1h"}, "300"),
        ({"client_secret_env": "not a name"}, "client_secret_env"),
        ({"client_secret": "hunter2"}, "client_secret"),
    ],
    ids=str,
)
def test_what_makes_no_sense_of_a_provider_is_refused(changes: dict[str, Any], said: str) -> None:
    given = {name: value for name, value in {**OIDC, **changes}.items() if value is not None}
    assert said in fault({"gateway": {"oidc": given}})


def test_a_provider_on_this_machine_needs_no_tls() -> None:
    here = {**OIDC, "issuer": "http://127.0.0.1:9400", "url": "http://localhost:8080"}
    assert parse_spec({"gateway": {"oidc": here}}).spec.gateway.oidc.describe() is not None


def test_keys_of_texts_come_from_one_place(tmp_path: Path) -> None:
    def source(**keys: str) -> str:
        return parse_spec({"record": {"encrypt": keys}}).spec.record.encrypt.source

    assert source() == ""
    assert source(keys_env="TEXT_KEYS") == "env:TEXT_KEYS"
    assert source(keys_file=str(tmp_path / "k")) == f"file:{tmp_path}/k"
    assert source(keys_file="k") == f"file:{Path.cwd()}/k"
    assert "not both" in fault({"record": {"encrypt": {"keys_env": "A", "keys_file": "b"}}})


def test_over_http_both_stay_as_they_are_applied(home: Home) -> None:
    """An operator could otherwise make themselves an admin, or read a file."""
    written = {
        "engine": {"kind": "echo"}, "gateway": {"oidc": OIDC},
        "record": {"encrypt": {"keys_env": "A"}},
    }  # fmt: skip
    service = DesiredService(spec=AppliedSpec(written=written).to_builtins())
    allow(home, written, service)
    widened = {**OIDC, "roles": {"admin": "*"}}
    for changed, place in (
        ({"gateway": {"oidc": widened}}, "gateway.oidc"),
        ({"record": {"encrypt": {"keys_env": "B"}}}, "record.encrypt"),
        ({"record": {"encrypt": {"keys_file": "/etc/passwd"}}}, "record.encrypt"),
        ({"gateway": {}}, "gateway.oidc"),
        ({"record": {}}, "record.encrypt"),
    ):
        said = refuse(home, {**written, **changed}, service)
        assert f"{place}: cannot change over HTTP" in said
    assert "gateway.oidc" in refuse(home, written)
