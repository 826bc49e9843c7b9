"""Read and write safetensors: a JSON header followed by raw bytes, mapped into memory.

This does not use the `safetensors` package, because NumPy has no bfloat16, the type of most
checkpoints. The format is an 8-byte length, that many bytes of JSON, and the tensors.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.errors import FormatRefused, IntegrityError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFiles:
    """The tensors of a checkpoint in one or more files."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._entries: dict[str, _Entry] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for path in paths:
            self._read_header(path)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._entries)

    def parameters(self) -> int:
        """The number of weights in the files."""
        return sum(math.prod(entry.shape) for entry in self._entries.values())

    def read_tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as float32."""
        entry = self._entries[name]
        count = math.prod(entry.shape)
        raw: npt.NDArray[Any] = np.frombuffer(
            self._maps[entry.file], _DTYPES[entry.dtype], count, entry.begin
        )
        if entry.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.reshape(entry.shape).astype(np.float32)

    def _read_header(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{path} cannot be read as safetensors: {error}") from None
        if len(mapped) < 8:
            raise IntegrityError(f"{path} is damaged: it has {len(mapped)} bytes")
        (length,) = struct.unpack_from("<Q", mapped, 0)
        if length > min(MAX_HEADER_BYTES, len(mapped) - 8):
            raise IntegrityError(f"{path} is damaged or not safetensors: its header is incomplete")
        try:
            header = json.loads(mapped[8 : 8 + length])
        except (ValueError, RecursionError):
            raise IntegrityError(f"{path} is damaged: its header is not JSON") from None
        if not isinstance(header, dict):
            raise IntegrityError(f"{path} is damaged: its header is not a JSON object")
        start = 8 + length
        for name, value in header.items():
            if name in self._entries:
                raise IntegrityError(
                    f"{path} and {self._entries[name].file.name} both hold the tensor {name}; keep "
                    "the files of one model"
                )
            if name != "__metadata__":
                self._entries[name] = _read_entry(path, name, value, start, len(mapped))
        self._maps[path] = mapped


def _read_entry(path: Path, name: str, value: Any, start: int, file_size: int) -> _Entry:
    """Check one tensor's entry in the header against the file."""
    damaged = IntegrityError(
        f"{path} is damaged: tensor {name} lies outside the file; fetch it again"
    )
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise IntegrityError(f"{path} is damaged: tensor {name} has no valid entry") from None
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FormatRefused(
            f"{path}: tensor {name} has the type {dtype!r:.40}, which is not supported; "
            "store the checkpoint in BF16, F16 or F32"
        )
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise damaged
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise damaged
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if not begin <= end <= file_size - start or end - begin != size:
        raise damaged
    return _Entry(path, dtype, tuple(shape), start + begin, start + end)


def write_safetensors(path: Path, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Write tensors in 16 bits: float16, or bfloat16 if a value exceeds 65,504."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    arrays: list[npt.NDArray[Any]] = []
    at = 0
    for name, values in tensors.items():
        dtype, array = _halve(values)
        entries[name] = {
            "dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + array.nbytes],
        }  # fmt: skip
        arrays.append(array)
        at += array.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for array in arrays:
            file.write(array.tobytes())


def _halve(values: npt.NDArray[np.float32]) -> tuple[str, npt.NDArray[Any]]:
    """Convert to 16 bits, rounded to nearest."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if np.isfinite(halves).all():
        return "F16", halves
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return "BF16", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
