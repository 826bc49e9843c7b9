"""What this machine is: processor features, cores and memory, as its limits leave them.

Most tools do not see a container's limits, so those of the control group are read first.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

GPUS_VARIABLE = "CUDA_VISIBLE_DEVICES"
_CGROUP = Path("/sys/fs/cgroup")

FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI (8-bit dot products)",
    "avx_vnni": "AVX VNNI (8-bit dot products)",
    "avx512_bf16": "AVX-512 BF16 (bfloat16 dot products)",
    "amx_int8": "AMX INT8 (8-bit matrix tiles)",
    "amx_bf16": "AMX BF16 (bfloat16 matrix tiles)",
    "asimd": "NEON",
    "asimddp": "NEON dot products",
    "sve": "SVE",
    "i8mm": "8-bit matrix multiply",
}
"""Processor flags that matter to language models, by the name the kernel gives them."""


@dataclass(frozen=True)
class Machine:
    """A machine, as this process may use it."""

    system: str
    architecture: str
    processor: str
    cores: tuple[int, ...]
    """The cores that this process may run on."""
    memory_bytes: int
    features: frozenset[str]
    gpus: tuple[str, ...] = ()
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""

    @property
    def id(self) -> str:
        """Equal for machines that compute alike: the processor, its features and the cores."""
        parts = [self.architecture, self.processor, str(len(self.cores)), *sorted(self.features)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def core_count(self) -> int:
        """How many cores there are to use."""
        return len(self.cores)


@functools.cache
def detect_machine() -> Machine:
    """Look at this machine, once."""
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        processor=_read_processor(),
        cores=_read_cores(),
        memory_bytes=_read_memory_bytes(),
        features=_read_features(),
        gpus=_read_gpus(),
    )


def available_memory_bytes() -> int:
    """Memory that can be had now without swapping, within the control group's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = _read_number(_CGROUP / "memory.max")
    used = _read_number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used + _read_cached_bytes()))
    return free


def _read_cached_bytes() -> int:
    """What the control group's account has of files read before, which the kernel gives back."""
    text = _read_text(_CGROUP / "memory.stat")
    return sum(int(n) for n in re.findall(r"^(?:in)?active_file (\d+)$", text, re.MULTILINE))


def _read_processor() -> str:
    if platform.system() == "Linux":
        match = re.search(
            r"^model name\s*:\s*(.+)$", _read_text(Path("/proc/cpuinfo")), re.MULTILINE
        )
        if match:
            return match.group(1).strip()
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def _read_cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    quota = _read_text(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = cores[: max(1, math.floor(int(quota[0]) / int(quota[1])))]
    return tuple(cores)


def _read_gpus() -> tuple[str, ...]:
    """Those that CUDA_VISIBLE_DEVICES names, else all."""
    given = os.environ.get(GPUS_VARIABLE)
    if given is not None:
        names = (one.strip() for one in given.split(","))
        return tuple(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    return tuple(str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*")))


def _read_memory_bytes() -> int:
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = _read_number(_CGROUP / "memory.max")
    return total if limit is None else min(total, limit)


def _read_features() -> frozenset[str]:
    if platform.system() == "Darwin":
        # Every Apple processor has dot products.
        found = {"asimd", "asimddp"} if platform.machine() == "arm64" else set()
        if "hw.optional.arm.FEAT_I8MM: 1" in _sysctl("-a"):
            found.add("i8mm")
        return frozenset(found)
    text = _read_text(Path("/proc/cpuinfo"))
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set(match.group(1).split()) if match else set()
    return frozenset(flags & set(FEATURES))


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdigit() else None


def _sysctl(*arguments: str) -> str:
    try:
        command = ["sysctl", *([] if arguments[0].startswith("-") else ["-n"]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
