"""Install the locked PyTorch: the CPU build where there is no GPU. The Makefile runs it.

    python constraints/install_torch.py [--index URL]

On Linux, PyPI's build of PyTorch brings 5 GB of CUDA libraries. Its CPU build has the same version
with the suffix `+cpu`, which pip prefers wherever one of its indexes has it. If none has, this
installs it from PyTorch's own index, or from the one that `--index` names. What it leaves
uninstalled, because there is a GPU or nothing to choose, the next `pip install` installs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("dev.txt")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NVIDIA = Path("/dev/nvidiactl")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def read_pin(constraints: str) -> str:
    """The version of PyTorch in a constraints file."""
    found = re.search(r"^torch==([\w.]+)", constraints, re.MULTILINE)
    assert found is not None, f"{CONSTRAINTS} does not pin torch"
    return found[1]


def needs_cpu_index(pin: str, available: str, *, linux: bool, gpu: bool) -> bool:
    """Whether the CPU build must come from another index.

    `available` is what `pip index versions torch` prints.
    """
    return linux and not gpu and f"{pin}+cpu" not in re.split(r"[\s,()]+", available)


def main() -> int:
    """Install PyTorch if pip would otherwise take the wrong build."""
    parser = argparse.ArgumentParser(description="Install the CPU build of PyTorch.")
    parser.add_argument("--index", help="take it from this index, whatever the machine has")
    index = parser.parse_args().index
    pin = read_pin(CONSTRAINTS.read_text(encoding="utf-8"))
    if not index:
        listed = subprocess.run(
            [*PIP, "index", "versions", "torch"], capture_output=True, text=True, check=False
        )
        linux, gpu = sys.platform == "linux", NVIDIA.exists()
        if not needs_cpu_index(pin, listed.stdout, linux=linux, gpu=gpu):
            return 0
    # Without dependencies: those come from the usual index, at their locked versions.
    installed = subprocess.run(
        [*PIP, "install", "--quiet", "--no-deps", "--no-compile", "--retries", "1",
         "--index-url", index or CPU_INDEX, f"torch=={pin}"],
        check=False,
    )  # fmt: skip
    if installed.returncode == 0 or index:
        return installed.returncode
    print(
        f"{CPU_INDEX} cannot be reached. If your index has no CPU build of torch {pin}, the next "
        "step downloads 5 GB. To take it from a mirror: make TORCH_INDEX=URL",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
