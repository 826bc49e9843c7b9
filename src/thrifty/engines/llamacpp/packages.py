"""Where llama.cpp comes from: a pinned wheel, in an environment of its own or in this one."""

from __future__ import annotations

import importlib.util
import mmap
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

from thrifty.artifacts import Store
from thrifty.engines.environments import EnginePackages, Environment
from thrifty.home import Home
from thrifty.types import OnProgress

PACKAGE = "xllamacpp"
VERSION = "2026.10.11549"
_HASHES = (
    "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",  # Linux, x86-64
    "e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e",  # Linux, ARM
    "4ecda27a308b2403aa13c9d04b270befab95edc556c24ed00b2f8a98bd7f6781",  # macOS, ARM
    "1f2a08052bb653659bcf1bedbbaf86b97f41dd46aa2763d596d7f27c5d89a689",  # macOS, x86-64
)
"""Checksums of the wheels, as PyPI has them. llama.cpp's processor code is built for AVX2."""
PACKAGES = EnginePackages(
    name="llamacpp",
    requirements=f"{PACKAGE}=={VERSION} " + " ".join(f"--hash=sha256:{h}" for h in _HASHES) + "\n",
    imports=PACKAGE,
    download_bytes=34_000_000,
    installed_bytes=107_000_000,
)


def find_environment(home: Home) -> Environment:
    """llama.cpp's environment in `home`, whether it is installed or not."""
    return Environment(PACKAGES, home)


def is_here() -> bool:
    """Whether the pinned version is installed beside Thrifty, as the extra `gguf` may have done."""
    try:
        return package_version(PACKAGE) == VERSION
    except PackageNotFoundError:
        return False


def find_python(home: Home) -> Path | None:
    """The interpreter that has llama.cpp; None where it is not installed."""
    if is_here():
        return Path(sys.executable)
    environment = find_environment(home)
    return environment.python if environment.installed else None


def install(home: Home, store: Store, on_progress: OnProgress) -> Path:
    """The interpreter that has llama.cpp, installed now if it was not, before a model of `store` is
    prepared. Raises `EngineError`, and `NotMadeYet` where the store is only looked at.
    """
    found = find_python(home)
    if found is not None:
        return found
    environment = find_environment(home)
    environment.install_for(store, on_progress)
    return environment.python


def knows_architecture(home: Home, architecture: str) -> bool:
    """Whether the installed llama.cpp has a model of this name.

    Names are constants in its library. One that is not there is certainly not known; one that is
    there may, rarely, be another constant, which then shows when the model is loaded. True where
    llama.cpp is not installed.
    """
    library = _find_library(home)
    if library is None or not architecture:
        return True
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(architecture.encode() + b"\0") >= 0


def _find_library(home: Home) -> Path | None:
    if is_here():
        spec = importlib.util.find_spec(PACKAGE)
        folders = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    else:
        folder = find_environment(home).folder
        folders = sorted(folder.glob(f"lib/python3*/site-packages/{PACKAGE}"))
    return next((path for each in folders for path in sorted(each.glob("*.so"))), None)
