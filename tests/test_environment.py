"""What tests run in: locked packages, without CUDA where that can be, and no settings from outside."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.environment import KEEP_VARIABLE, clear_environment

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "constraints" / "dev.txt"


@pytest.fixture(scope="module")
def install_torch() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "install_torch", ROOT / "constraints" / "install_torch.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_lock() -> list[Requirement]:
    lines = LOCK.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.lstrip().startswith("#")]


def required() -> list[Requirement]:
    """What `.[dev]` asks for by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = [Requirement(text) for text in [*project["dependencies"], *extras["dev"]]]
    ours = next(one for one in found if one.name == "thrifty")
    found += [Requirement(text) for extra in sorted(ours.extras) for text in extras[extra]]
    return [one for one in found if one.name != "thrifty"]


def test_the_lock_pins_every_requirement_within_its_range() -> None:
    pins = read_lock()
    for wanted in required():
        found = [p for p in pins if canonicalize_name(p.name) == canonicalize_name(wanted.name)]
        assert found, f"{LOCK.name} does not pin {wanted.name}: make lock"
        for pin in found:
            (version,) = [one.version for one in pin.specifier]
            assert wanted.specifier.contains(version), f"{pin} is outside {wanted}: make lock"
    assert len(required()) > 30


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_each_python_and_system_has_one_version_of_a_package(python: str, system: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": system,
        "platform_system": system.title(),
        "os_name": "posix",
    }
    chosen: dict[str, Version] = {}
    for pin in read_lock():
        if pin.marker is None or pin.marker.evaluate(environment):
            assert pin.name not in chosen, f"two versions of {pin.name}"
            chosen[pin.name] = Version(next(iter(pin.specifier)).version)
    assert len(chosen) > 100


def test_the_lock_holds_what_is_installed_here() -> None:
    """Where the tests run in the locked environment, they run what was locked."""
    if not (Path(sys.prefix) / ".dev").exists():
        pytest.skip("this environment was not made by `make`")
    from importlib.metadata import version

    for pin in read_lock():
        needed = any(canonicalize_name(one.name) == pin.name for one in required())
        if needed and (pin.marker is None or pin.marker.evaluate()):
            assert pin.specifier.contains(Version(version(pin.name)).public), pin.name


def test_a_cpu_build_is_fetched_only_where_pip_would_not_take_one(
    install_torch: ModuleType,
) -> None:
    needs = install_torch.needs_cpu_index
    here = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0\n"
    elsewhere = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0, 2.12.0+cpu\n"
    assert not needs("2.13.0", here, linux=True, gpu=False)
    assert needs("2.13.0", elsewhere, linux=True, gpu=False)
    assert needs("2.13.0", "", linux=True, gpu=False), "an index that says nothing has none"
    assert not needs("2.13.0", elsewhere, linux=True, gpu=True)
    assert not needs("2.13.0", elsewhere, linux=False, gpu=False)


def test_the_lock_pins_one_pytorch_and_no_build_of_it(install_torch: ModuleType) -> None:
    pin = install_torch.read_pin(LOCK.read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", pin)


# Settings from outside

HOSTILE = {
    "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_outside",
    "TRANSFORMERS_OFFLINE": "1", "THRIFTY_PORT": "1", "THRIFTY_REPLICAS": "two",
    "THRIFTY_HOME": "/proc/nowhere", "OPENAI_API_KEY": "wrong", "OPENAI_BASE_URL": "http://127.0.0.1:9",
    "FORCE_COLOR": "1", "COLUMNS": "20", "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", "PGHOST": "127.0.0.1",
}  # fmt: skip


def test_what_changes_results_is_removed_and_what_reaches_indexes_stays() -> None:
    stays = {"PATH": "/bin", "PIP_INDEX_URL": "https://index", "SSL_CERT_FILE": "/ca.pem",
             "ONEDNN_MAX_CPU_ISA": "AVX2", "THRIFTY_TEST_HOME": "/models"}  # fmt: skip
    environment = {**HOSTILE, **stays, "no_proxy": "inside.example, 127.0.0.1"}
    clear_environment(environment)
    assert environment == {
        **stays,
        **{name: HOSTILE[name] for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")},
        "no_proxy": "inside.example,127.0.0.1,localhost,::1",
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }


def test_a_test_that_starts_pytest_can_keep_a_variable() -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "x", KEEP_VARIABLE: "HF_HUB_OFFLINE"}
    clear_environment(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "HF_TOKEN" not in environment


@pytest.mark.slow
@pytest.mark.long
def test_tests_pass_with_any_settings_around_them() -> None:
    """Those that failed: the hub's, downloads, and what is printed."""
    tests = ["tests/artifacts/test_hub.py", "tests/artifacts/test_download.py", "tests/cli"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests,
         "-m", "not slow and not engine and not service and not peer and not deploy"],
        cwd=ROOT, env={**os.environ, **HOSTILE}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
