"""How much disk an installation takes: the light install, and what `make test` installs.

    python benchmarks/install_size.py

Both are made from nothing, in a fresh clone of the last commit, by the Makefile's own targets, with
pip's cache off. The bytecode that Python writes when modules are first used counts: `make check` and
the tests of the largest packages run before the second measurement. The models that tests and
services download do not count.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from common import ROOT, WORK, finish, parse_arguments, say

LIGHT_BAR_BYTES = 0.5e9
TEST_BAR_BYTES = 2.5e9
SHOWN = 12
HEAVY_TESTS = ("tests/evaluate/test_torch.py", "tests/compress/test_distill.py")
"""Those that import PyTorch and transformers."""


def disk_bytes(folder: Path) -> int:
    """What the files below `folder` take on disk, each hard link once."""
    seen = set()
    total = 0
    for parent, _, names in os.walk(folder):
        for path in [parent, *(os.path.join(parent, name) for name in names)]:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


def package_bytes(environment: Path) -> Counter[str]:
    """What each entry of an environment's site-packages takes. A package's shared libraries that
    lie in a folder beside it (`numpy.libs`) count as its own.
    """
    (packages,) = environment.glob("lib/python*/site-packages")
    sizes: Counter[str] = Counter()
    for path in packages.iterdir():
        name = path.name.removesuffix(".libs")
        sizes[name] += disk_bytes(path) if path.is_dir() else path.stat().st_blocks * 512
    return sizes


def clean_environment() -> dict[str, str]:
    """The environment of a newcomer: no other checkout in it, and nothing in pip's cache."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**ours, "PIP_NO_CACHE_DIR": "1"}


def run(clone: Path, *command: str, check: bool = True) -> None:
    """Run a command in the clone, as a newcomer would."""
    say(" ".join(command))
    subprocess.run(command, cwd=clone, check=check, stdout=sys.stderr, env=clean_environment())


def torch_build(python: Path) -> str:
    """The build of PyTorch that was installed, such as `2.13.0+cpu`."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    arguments = parse_arguments("Measure what installing takes on disk.", rounds=1)
    folder = WORK / "install"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clone = folder / "thrifty"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    python = clone / ".venv" / "bin" / "python"
    try:
        run(clone, "make", "install")
        light, light_packages = disk_bytes(clone / ".venv"), package_bytes(clone / ".venv")
        # Whether they pass is for the suite to say; what they load is what counts here.
        run(clone, "make", "check", check=False)
        run(clone, str(python), "-m", "pytest", "-q", *HEAVY_TESTS, check=False)
        development = disk_bytes(clone / ".venv")
        packages = package_bytes(clone / ".venv")
        build = torch_build(python)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(arguments.no_save, light, light_packages, development, packages, build)


def report(
    no_save: bool,
    light: int,
    light_packages: Counter[str],
    development: int,
    packages: Counter[str],
    build: str,
) -> None:
    """Print and keep what was measured."""
    table = [("what", "MB on disk")]
    table.append(("light install", f"{light / 1e6:.0f}"))
    table += [
        (f"- {name}", f"{size / 1e6:.0f}") for name, size in light_packages.most_common(SHOWN)
    ]
    table.append(("development environment", f"{development / 1e6:.0f}"))
    added = [(name, size) for name, size in packages.most_common() if name not in light_packages]
    table += [(f"- {name}", f"{size / 1e6:.0f}") for name, size in added[:SHOWN]]
    figures: list[dict[str, Any]] = [
        {
            "figure": "a light install (`make install`) on disk",
            "measured": f"{light / 1e9:.2f} GB",
            "bar": f"<= {LIGHT_BAR_BYTES / 1e9:g} GB",
            "met": light <= LIGHT_BAR_BYTES,
        },
        {
            "figure": f"all that `make test` installs, on disk, without a GPU (torch {build})",
            "measured": f"{development / 1e9:.2f} GB",
            "bar": f"<= {TEST_BAR_BYTES / 1e9:g} GB",
            "met": development <= TEST_BAR_BYTES,
        },
    ]
    record = {
        "versions": {"torch": f"torch {build}"},
        "light_bytes": light,
        "development_bytes": development,
        "light_package_bytes": dict(light_packages.most_common()),
        "development_package_bytes": dict(packages.most_common()),
    }
    finish("install_size", record, table, figures, save=not no_save)


if __name__ == "__main__":
    main()
