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


def make_environment(name: str, *requirements: str) -> Path:
    """The Python of an environment with these packages."""
    root = Path(os.environ.get("THRIFTY_TEST_ENVIRONMENTS") or Path.home() / ".cache/thrifty-tests")
    folder = root / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    root.mkdir(parents=True, exist_ok=True)
    python, done = folder / "bin" / "python", folder / ".done"
    # A .pth file hands on whatever the tests' own environment has.
    locked = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    wanted = "\n".join([*site.getsitepackages(), *requirements, locked])
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and done.read_text() == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        ours = next((folder / "lib").glob("python*/site-packages"))
        lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
        (ours / "tests.pth").write_text("".join(lines))
        # The tests' own pip, which the new environment sees too.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--no-compile", "--constraint", str(LOCK)]  # fmt: skip
        subprocess.run([*pip, *requirements], check=True, stdout=sys.stderr)
        done.write_text(wanted)
    return python
