"""llama.cpp's own quantizers, in a process of their own.

They come in the wheel of xllamacpp, which has them for every platform without a compiler. C code that
meets what it does not expect ends its process; that must be an error here and no more, so a worker
(`ggml_worker`) does the work: a line of JSON and the floats go in, a line of JSON and the bytes come out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.errors import CompressionError, IntegrityError

FloatArray = npt.NDArray[np.float32]

PIECE_BYTES = 64_000_000
"""So much of a tensor goes over at once: rows are quantized each on its own."""
PACKAGE = "xllamacpp"


class Ggml:
    """Quantizes tensors; to be used with `with`. Raises `CompressionError` where llama.cpp is not
    installed, or ends unexpectedly.
    """

    def __init__(self, library: Path | None = None) -> None:
        self._library = library or find_library()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "thrifty.compress.quantize.ggml_worker", str(self._library),
             str(_count_cores())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip

    def __enter__(self) -> Ggml:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        with contextlib.suppress(OSError):  # it is gone already
            self._worker.stdin.close()
        try:
            self._worker.wait(10)
        except subprocess.TimeoutExpired:
            self._worker.kill()
            self._worker.wait()
        self._worker.stdout.close()
        self._errors.close()

    def quantize(
        self, name: str, values: FloatArray, kind: int, importance: FloatArray | None = None
    ) -> npt.NDArray[np.uint8]:
        """`values` [rows, columns] in the GGML type `kind`: [rows, bytes of a row].

        `importance` [columns] weighs errors: the mean square of what each column is multiplied with.
        """
        if not np.isfinite(values).all():
            raise IntegrityError(f"the tensor {name!r} has a weight that is no finite number")
        rows, columns = values.shape
        step = max(1, PIECE_BYTES // (4 * columns))
        pieces = [
            self._ask(name, values[start : start + step], kind, importance)
            for start in range(0, rows, step)
        ]
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def _ask(
        self, name: str, values: FloatArray, kind: int, importance: FloatArray | None
    ) -> npt.NDArray[np.uint8]:
        rows, columns = values.shape
        question = {
            "kind": kind, "rows": rows, "columns": columns, "importance": importance is not None,
        }  # fmt: skip
        source, target = self._worker.stdin, self._worker.stdout
        assert source is not None
        assert target is not None
        try:
            source.write(json.dumps(question).encode() + b"\n")
            source.write(np.ascontiguousarray(values, np.float32).data)
            if importance is not None:
                source.write(np.ascontiguousarray(importance, np.float32).data)
            source.flush()
            line = target.readline()
        except OSError:
            line = b""
        answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        if "error" in answer:
            raise CompressionError(f"llama.cpp cannot quantize {name}: {answer['error']}")
        data = target.read(answer.get("bytes", 0)) if answer else b""
        if not answer or len(data) != answer["bytes"]:
            raise CompressionError(f"llama.cpp ended while it quantized {name}: {self._tell_end()}")
        return np.frombuffer(data, np.uint8).reshape(rows, -1)

    def _tell_end(self) -> str:
        try:
            code = self._worker.wait(10)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        self._errors.seek(0)
        lines = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how}; {lines[-1]}" if lines else how


def find_library() -> Path:
    """The library that holds llama.cpp. Raises `CompressionError` where there is none."""
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent if found is not None and found.origin else None
    libraries = sorted(folder.glob(f"{PACKAGE}*.so")) if folder is not None else []
    if not libraries:
        raise CompressionError(
            "K-quants are made by llama.cpp, which is not installed; "
            "run: pip install 'thrifty[gguf]' (q8_0, f16, bf16 and f32 need nothing more)"
        )
    return libraries[0]


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
