"""`thrifty engines`: what is installed, and how what is not is installed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts.test_pypi import index, publish  # noqa: F401 - a fixture
from tests.artifacts.web import WebServer, running_web
from tests.parts import run_thrifty
from thrifty.cli import engines as command
from thrifty.engines.environments import EnginePackages, Environment
from thrifty.engines.registry import engine_kinds, find_engine
from thrifty.engines.vllm.adapter import VllmEngine
from thrifty.errors import EngineError


@pytest.fixture
def web() -> Iterator[WebServer]:
    with running_web() as server:
        yield server


def test_every_engine_is_listed(tmp_path: Path) -> None:
    result = run_thrifty(tmp_path, "engines", "--json")
    assert result.returncode == 0, result.stderr
    found = {one["engine"]: one for one in json.loads(result.stdout)["engines"]}
    assert list(found) == engine_kinds()
    assert found["openvino"]["state"] == "with Thrifty"
    vllm = found["vllm"]
    assert (vllm["state"], vllm["python"]) == ("not installed", None)
    assert vllm["download_bytes"] > 100_000_000
    assert vllm["capabilities"]
    shown = run_thrifty(tmp_path, "engines").stdout
    assert "thrifty engines install vllm" in shown


def test_what_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    with pytest.raises(EngineError, match="'echo' comes with Thrifty"):
        command.run_install("echo", as_json=False)
    with pytest.raises(EngineError, match="there is no engine 'nothing'"):
        command.run_install("nothing", as_json=False)
    monkeypatch.setattr("thrifty.engines.vllm.adapter.find_platform_fault", lambda _: "no way")
    with pytest.raises(EngineError, match="'vllm' cannot run here: no way"):
        command.run_install("vllm", as_json=False)


@pytest.mark.slow
def test_an_engine_is_installed_and_then_listed(
    index: WebServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The packages are small ones of our own; the installation is the real one."""
    publish(index, "tiny-engine", {"tiny_engine/__init__.py": b"VALUE = 7\n"})
    packages = EnginePackages("vllm", "tiny-engine==1.0\n", "tiny_engine", 1000, 2000)
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    traits = dataclasses.replace(
        find_engine("vllm").traits, find_environment=lambda home: Environment(packages, home)
    )
    monkeypatch.setattr(VllmEngine, "traits", traits)
    command.run_install("vllm", as_json=True)
    shown = capsys.readouterr()
    made = json.loads(shown.out)
    assert made["state"] == "installed"
    assert Path(made["python"]).exists()
    assert made["size_bytes"] > 0
    assert "1.0 kB to download" in shown.err
    command.run_install("vllm", as_json=False)
    assert "1 packages" in capsys.readouterr().out
