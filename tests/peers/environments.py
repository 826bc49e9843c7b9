"""Environments for what others wrote and what does not belong among our own dependencies.

Each is made once, on demand, and kept. It sees the packages of the environment that runs the
tests, so that only what is new is installed, at the versions that are locked.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[2] / "constraints" / "dev.txt"


def make_environment(name: str, *requirements: str, alone: bool = False) -> Path:
    """The Python of an environment with these packages. One that is `alone` sees none of ours, and
    has its packages at the versions that they ask for.
    """
    root = Path(os.environ.get("THRIFTY_TEST_ENVIRONMENTS") or Path.home() / ".cache/thrifty-tests")
    folder = root / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    root.mkdir(parents=True, exist_ok=True)
    python, done = folder / "bin" / "python", folder / ".done"
    # A .pth file hands on whatever the tests' own environment has.
    locked = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    wanted = "\n".join([*site.getsitepackages(), *requirements, "alone" if alone else locked])
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        # The tests' own pip works for the new environment too.
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet",
               "--disable-pip-version-check", "--no-compile"]  # fmt: skip
        if not alone:
            _show_packages(folder)
            pip += ["--constraint", str(LOCK)]
        subprocess.run([*pip, *requirements], check=True, stdout=sys.stderr)
        done.write_text(wanted)
    return python


def _show_packages(folder: Path) -> None:
    """Let an environment see the packages of the one that runs the tests."""
    ours = next((folder / "lib").glob("python*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (ours / "tests.pth").write_text("".join(lines))
