"""The process that calls llama.cpp's quantizers: `python -m ... LIBRARY THREADS`.

Questions come on standard input: a line of JSON (`kind`, `rows`, `columns`, `importance`), the floats,
and the importance of columns where there is one. Answers go to standard output: a line of JSON with the
number of bytes that follow, or an error. It ends with its input.

The functions are part of ggml's public interface (`ggml.h`): `ggml_quantize_chunk`, `ggml_row_size`,
`ggml_validate_row_data`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt


class Library:
    """The functions that are needed of ggml. Raises `OSError` or `AttributeError` where they are not
    there.
    """

    def __init__(self, path: str, threads: int) -> None:
        library = ctypes.CDLL(path)
        self._quantize = library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        self._row_size = library.ggml_row_size
        self._row_size.restype = ctypes.c_size_t
        self._row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self._validate = library.ggml_validate_row_data
        self._validate.restype = ctypes.c_bool
        self._validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def quantize(
        self,
        kind: int,
        values: npt.NDArray[np.float32],
        importance: npt.NDArray[np.float32] | None,
    ) -> npt.NDArray[np.uint8]:
        """Every row of `values` in the type `kind`. Threads share the rows: ctypes lets go of
        Python's lock.
        """
        rows, columns = values.shape
        made = np.empty((rows, self._row_size(kind, columns)), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        edges = np.linspace(0, rows, self._threads + 1).astype(int)

        def work(part: int) -> None:
            first, last = int(edges[part]), int(edges[part + 1])
            if first < last:
                self._quantize(
                    kind, values.ctypes.data, made.ctypes.data, first * columns, last - first,
                    columns, weights,
                )  # fmt: skip

        list(self._pool.map(work, range(self._threads)))
        if not self._validate(kind, made.ctypes.data, made.nbytes):
            raise ValueError("it finds what it made invalid")
        return made


def read_floats(stream: Any, *shape: int) -> npt.NDArray[np.float32]:
    """An array from a stream; raises `EOFError` where it breaks off."""
    values = np.empty(shape, np.float32)
    left = values.data.cast("B")
    while len(left):
        count = stream.readinto(left)
        if not count:
            raise EOFError
        left = left[count:]
    return values


def main() -> None:
    """Answer until the input ends."""
    # What C code prints must not come between the answers.
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    library = Library(sys.argv[1], int(sys.argv[2]))
    while line := source.readline():
        question = json.loads(line)
        values = read_floats(source, question["rows"], question["columns"])
        importance = read_floats(source, question["columns"]) if question["importance"] else None
        try:
            made = library.quantize(question["kind"], values, importance)
        except ValueError as error:
            target.write(json.dumps({"error": str(error)}).encode() + b"\n")
        else:
            target.write(json.dumps({"bytes": made.nbytes}).encode() + b"\n")
            target.write(made.data)
        target.flush()


if __name__ == "__main__":
    main()
