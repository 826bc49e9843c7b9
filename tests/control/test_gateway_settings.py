"""The gateway's settings, from the spec to the worker."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from thrifty.control.gateway_settings import (
    describe_gateway,
    find_unchangeable,
    make_url,
    make_worker_settings,
)
from thrifty.home import Home
from thrifty.spec import load_spec
from thrifty.worker.settings import GatewaySettings


def test_a_worker_understands_what_a_spec_says(tmp_path: Path) -> None:
    flags = {
        "gateway.workers": 3, "gateway.port": 81, "gateway.host": "0.0.0.0",
        "cache.exact.max_bytes": 5, "batches.reserve": 2, "redis": "redis://:secret@h/0",
    }  # fmt: skip
    described = describe_gateway(load_spec(flags=flags).spec)
    assert json.loads(json.dumps(described)) == described, "plain data"
    made = make_worker_settings(
        described, Home(tmp_path), host="0.0.0.0", port=82, database_url="db", id_secret="ab"
    )
    settings = msgspec.convert(dict(made.settings), GatewaySettings)
    assert (settings.host, settings.port, settings.workers) == ("0.0.0.0", 82, 3)
    assert (settings.cache_bytes, settings.require_keys) == (5, True)
    assert settings.batches.folder == str(tmp_path / "files")
    assert settings.batches.governor.reserve == 2
    assert (made.workers, made.drain_timeout_s) == (3, 30.0)
    # Secrets are no settings, which a command line shows.
    assert "secret" not in json.dumps(dict(made.settings))
    assert made.environment == {
        settings.database_url_env: "db",
        settings.redis_url_env: "redis://:secret@h/0",
        settings.id_secret_env: "ab",
    }
    assert set(made.settings) <= set(GatewaySettings.__struct_fields__)


def test_what_cannot_change_in_place_is_named() -> None:
    old = {"host": "127.0.0.1", "port": 8080}
    assert find_unchangeable(old, {**old, "workers": 2}) == []
    assert find_unchangeable(old, {"host": "127.0.0.1", "port": 0}) == []
    assert find_unchangeable(old, {"host": "0.0.0.0", "port": 81}) == ["host", "port"]


def test_clients_here_reach_it_by_a_name_that_works() -> None:
    assert make_url("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert make_url("::", 1) == "http://[::1]:1"
    assert make_url("localhost", 1) == "http://localhost:1"
