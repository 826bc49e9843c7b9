"""What a spec that comes over HTTP may name of the service's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.control.test_plan import load, make
from tests.control.test_service_api import database
from thrifty.artifacts import Store
from thrifty.control.http_spec import check_http_spec
from thrifty.db import Database
from thrifty.db.desired_state import DesiredService
from thrifty.errors import SpecError
from thrifty.home import Home
from thrifty.spec import parse_spec
from thrifty.worker.home_services import HomeServices

__all__ = ["database"]

URL = "http://127.0.0.1:1"


def remote(variable: str, *urls: str) -> dict[str, Any]:
    engine = {"kind": "remote", "urls": list(urls or [URL]), "key_env": variable}
    return {"name": "far", "model": "org/big", "engine": engine}


def refuse(home: Home, spec: dict[str, Any], service: DesiredService | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        check_http_spec(parse_spec(spec), service, Store(home.models))
    return str(caught.value)


def allow(home: Home, spec: dict[str, Any], service: DesiredService | None = None) -> None:
    check_http_spec(parse_spec(spec), service, Store(home.models))


def test_the_api_sends_no_variable_anywhere_and_says_nothing_of_files(
    home: Home, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way, with the process that plans."""
    services = HomeServices(database, home)
    monkeypatch.setenv("SOME_SECRET", "hunter2")
    said = []
    for name in ("SOME_SECRET", "NO_SUCH_THING"):
        with pytest.raises(SpecError) as caught:
            services.make_plan(remote(name))
        said.append(str(caught.value).replace(name, "NAME"))
    assert said[0] == said[1]
    assert "THRIFTY_UPSTREAM_" in said[0]
    (tmp_path / "there").mkdir()
    said = []
    for name in ("there", "not_there"):
        with pytest.raises(SpecError) as caught:
            services.apply_spec({"model": str(tmp_path / name)}, reset=False, who="ann", why="")
        said.append(str(caught.value).replace(name, "NAME"))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "name",
    ["PATH", "THRIFTY_DATABASE", "THRIFTY_REDIS", "THRIFTY_ID_SECRET", "THRIFTY_DATABASE_URL"],
)
def test_variables_need_the_prefix(home: Home, name: str) -> None:
    for spec in (
        remote(name),
        {"deployments": [remote("THRIFTY_UPSTREAM_A"), {**remote(name), "name": "b"}]},
        {**remote("THRIFTY_UPSTREAM_A"), "versions": [
            {"label": "a"}, {"label": "b", "engine": {"kind": "remote", "urls": URL, "key_env": name}},
        ]},
    ):  # fmt: skip
        assert "engine.key_env" in refuse(home, spec)
    allow(home, remote("THRIFTY_UPSTREAM_KEY", "http://127.0.0.1:7"))


def test_what_the_applied_spec_uses_stays_allowed_for_the_same_urls(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", "k")
    monkeypatch.setenv("THRIFTY_DATABASE", "k")
    service = make(home, load(tmp_path, **remote("FAR_KEY", f"{URL}/v1"))).service
    allow(home, {**remote("FAR_KEY"), "aliases": ["more"]}, service)
    refuse(home, remote("OTHER_KEY"), service)
    assert "with the URLs" in refuse(home, remote("FAR_KEY", URL, "http://10.0.0.1:1"), service)
    own = make(home, load(tmp_path, **remote("THRIFTY_DATABASE"))).service
    refuse(home, remote("THRIFTY_DATABASE"), own)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"model": "/root"}, "model"),
        ({"model": "./x.gguf"}, "model"),
        ({"model": "etc"}, "model"),
        ({"model": "file:/etc"}, "model"),
        ({"versions": [{"label": "a"}, {"label": "b", "model": "~"}]}, "model"),
        ({"compress": {"distill": {"tokens": 1000, "teacher": "/root"}}}, "teacher"),
        ({"compress": {"text": "/etc/passwd"}}, "compress.text"),
        ({"compress": {"held_out": "/etc/passwd"}}, "compress.held_out"),
        ({"compress": {"tasks": ["boolq", "/etc/passwd"]}}, "compress.tasks"),
        ({"compress": {"tasks": ["lm_eval:../x.yaml"]}}, "compress.tasks"),
        ({"gateway": {"tls": {"cert": "/etc/a", "key": "/etc/b"}}}, "gateway.tls"),
        ({"quality": {"judge": "os:system"}}, "quality.judge"),
        ({"improve": {"gate": {"judge": "os:system"}}}, "improve.gate.judge"),
        ({"quality": {"judge": {"url": "http://x", "model": "m", "key_env": "HOME"}}}, "judge"),
        ({"improve": {"release": {"shadow": {"judge": "os:system"}}}}, "improve.release.shadow.judge"),
        ({"improve": {"gate": {"data": ["/etc/passwd"]}}}, "improve.gate.data"),
        ({"redis": "unix:///run/redis.sock"}, "redis"),
        ({"database": "sqlite:////etc/passwd"}, "database"),
    ],
)  # fmt: skip
def test_files_and_stores_are_refused(home: Home, spec: dict[str, Any], path: str) -> None:
    assert path in refuse(home, spec)


def test_a_folder_of_the_working_directory_is_no_model(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    there, away = refuse(home, {"model": "there"}), refuse(home, {"model": "away"})
    assert there.replace("there", "x") == away.replace("away", "x")


def test_sources_data_sets_and_what_runs_are_allowed(home: Home, tmp_path: Path) -> None:
    allow(home, {"model": "hf:org/name"})
    allow(home, {"compress": {"text": "passages", "tasks": ["boolq", "lm_eval:arc_easy"]}})
    allow(home, {"engine": "echo", "model": "any/name"})
    redis = "redis://user:secret@127.0.0.1:1/0"
    made = trustme.CA().issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made.cert_chain_pems[0].write_to_path(cert)
    made.private_key_pem.write_to_path(key)
    keys = {"gateway": {"tls": {"cert": str(cert), "key": str(key)}}, "redis": redis}
    service = make(home, load(tmp_path, **keys)).service
    allow(home, {"engine": "echo", **keys}, service)
    other = refuse(home, {"engine": "echo", "redis": "redis://10.0.0.1"}, service)
    assert "secret" not in other


@pytest.mark.parametrize(
    "model", ["s3://bucket/chat", "oci://127.0.0.1:1/x", "file:///srv/models/chat"]
)
def test_a_remote_over_http_is_the_applied_one(home: Home, model: str) -> None:
    """Else the holder of a key could have this machine ask any host, with its credentials."""
    assert "over HTTP, this must be pypi:PACKAGE" in refuse(home, {"name": "chat", "model": model})
