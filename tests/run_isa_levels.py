"""Run the numeric tests at processor levels below this machine's own: `make test-isa`.

oneDNN obeys `ONEDNN_MAX_CPU_ISA`, and Thrifty makes the rest of OpenVINO follow it, so most tests run
at full speed. What asks the processor itself is tested under `qemu-user`, if that is installed. Levels
that this machine does not have are skipped and counted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from thrifty.engines.machine import detect_machine
from thrifty.graphs.arithmetic import LIMIT_VARIABLE, LIMITS

ROOT = Path(__file__).parent.parent
LEVELS = ("AVX2", "AVX2_VNNI", "AVX512_CORE")
"""Without dot products; with those of AVX; with 512 bits and no dot products."""
NUMERIC = (
    "tests/graphs", "tests/compress/test_static_activations.py",
    "tests/engines/test_known_answers.py", "tests/evaluate/test_paged.py",
)  # fmt: skip
EMULATED = "Haswell"
"""The newest processor with AVX2 and without VNNI that qemu emulates whole."""
UNDER_EMULATION = ("tests/compress/test_static_activations.py",)
"""Few: emulation takes some ten times as long."""


def run(command: list[str], environment: dict[str, str]) -> bool:
    """Whether it succeeds. It shows its own output."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False)
    return done.returncode == 0


def main() -> int:
    """The exit status: 0 if everything that this machine has passed."""
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    passed, failed, skipped = [], [], []
    for level in LEVELS:
        if not LIMITS[level] <= detect_machine().features:
            skipped.append(f"{level}: this processor does not have it")
            continue
        print(f"\n== {level}", flush=True)
        good = run([sys.executable, *pytest, *NUMERIC], {LIMIT_VARIABLE: level})
        (passed if good else failed).append(level)
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or detect_machine().architecture != "x86_64":
        skipped.append(f"{EMULATED}: there is no qemu-x86_64 (apt install qemu-user)")
    else:
        print(f"\n== {EMULATED}, emulated", flush=True)
        command = [emulator, "-cpu", EMULATED, sys.executable, *pytest, *UNDER_EMULATION]
        # Programs see the host's flags in /proc/cpuinfo; the limit says what is emulated.
        good = run(command, {LIMIT_VARIABLE: "AVX2"})
        (passed if good else failed).append(EMULATED)
    print(f"\n{len(passed)} levels passed, {len(failed)} failed, {len(skipped)} skipped")
    for line in [*(f"failed: {level}" for level in failed), *(f"skipped: {s}" for s in skipped)]:
        print(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
