"""Read GGUF: the metadata in one fast pass, the tensors on demand.

The header is not parsed by the `gguf` package, whose reader builds an array object for every token
of the vocabulary and takes seconds. Dequantization is that package's. Every length is checked
against the file, so that damage is reported as such.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.errors import FormatRefused, IntegrityError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ENTRIES = 1_000_000
MAX_ARRAY_VALUES = 10_000_000
"""Far above any vocabulary; a damaged count must not exhaust the memory."""
MAX_ARRAY_DEPTH = 4
MAX_NAME_CHARS = 256
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20

_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True)
class GgufTensor:
    """The location of one tensor. `shape` is outermost first, as in NumPy."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    """Bytes from the start of the file."""
    size_bytes: int


class GgufFile:
    """A GGUF file with its metadata. Raises `IntegrityError` if it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.kinds: dict[str, tuple[int, int | None]] = {}
        """The types of each key's value and, for arrays, of the array's values, as GGUF numbers."""
        self.tensors: dict[str, GgufTensor] = {}
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{path} cannot be read as GGUF: {error}") from None
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
            raise IntegrityError(f"{path} is damaged: its header is incomplete ({error})") from None

    @property
    def architecture(self) -> str:
        """The architecture's name, such as `llama`."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value; `key` is without the architecture, such as `block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def read_tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, dequantized to float32. Raises `FormatRefused` for unsupported types."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        raw = np.frombuffer(self._map, np.uint8, tensor.size_bytes, tensor.offset)
        kind = GGMLQuantizationType(tensor.ggml_type)
        if kind == GGMLQuantizationType.F32:
            return raw.view(np.float32).reshape(tensor.shape).copy()
        if kind == GGMLQuantizationType.F16:
            return raw.view(np.float16).reshape(tensor.shape).astype(np.float32)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        try:
            values: npt.NDArray[np.float32] = dequantize(rows, kind)
        except NotImplementedError:
            raise FormatRefused(
                f"{self.path}: tensor {name} has the type {kind.name}, which is not supported"
            ) from None
        return values.reshape(tensor.shape)

    def parameters(self) -> int:
        """The number of weights in the file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def _read_header(self) -> None:
        if self._map[:4] != MAGIC:
            raise FormatRefused(f"{self.path} is not a GGUF file (it does not start with 'GGUF')")
        version, position = self._scalar(_U32, 4)
        if version not in VERSIONS:
            raise FormatRefused(
                f"{self.path} is GGUF version {version}; versions {VERSIONS} are supported. "
                "Convert it again with a current llama.cpp"
            )
        tensor_count, position = self._scalar(_U64, position)
        entry_count, position = self._scalar(_U64, position)
        if tensor_count > MAX_ENTRIES or entry_count > MAX_ENTRIES:
            raise IntegrityError(f"{self.path} is damaged: it claims {tensor_count} tensors")
        for _ in range(entry_count):
            key, position = self._string(position)
            kind, position = self._scalar(_U32, position)
            self.kinds[key] = kind, self._scalar(_U32, position)[0] if kind == _ARRAY else None
            self.metadata[key], position = self._value(kind, position)
        self._read_tensor_table(tensor_count, position)

    def _read_tensor_table(self, count: int, position: int) -> None:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        found: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            name, position = self._string(position)
            if len(name) > MAX_NAME_CHARS:
                raise IntegrityError(
                    f"{self.path} is damaged: a tensor's name has {len(name)} characters"
                )
            dimensions, position = self._scalar(_U32, position)
            if dimensions > MAX_DIMENSIONS:
                raise IntegrityError(f"{self.path} is damaged: {name} has {dimensions} dimensions")
            lengths: list[int] = []
            for _ in range(dimensions):
                length, position = self._scalar(_U64, position)
                lengths.append(length)
            kind, position = self._scalar(_U32, position)
            offset, position = self._scalar(_U64, position)
            found.append((name, tuple(reversed(lengths)), kind, offset))
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT:
            raise IntegrityError(f"{self.path} is damaged: its alignment is {alignment!r:.40}")
        start = -(-position // alignment) * alignment
        for name, shape, kind, offset in found:
            try:
                block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except ValueError:
                raise FormatRefused(
                    f"{self.path}: tensor {name} has the unknown type {kind}"
                ) from None
            if (shape[-1] if shape else 1) % block:
                raise IntegrityError(
                    f"{self.path} is damaged: tensor {name} has the shape {shape}, whose rows do "
                    f"not consist of whole blocks of {block}"
                )
            size = math.prod(shape) // block * block_bytes
            if start + offset + size > len(self._map):
                raise IntegrityError(
                    f"{self.path} is damaged: tensor {name} ends at byte {start + offset + size}, "
                    f"but the file at {len(self._map)}; fetch it again"
                )
            self.tensors[name] = GgufTensor(name, shape, kind, start + offset, size)

    def _scalar(self, layout: struct.Struct, position: int) -> tuple[Any, int]:
        return layout.unpack_from(self._map, position)[0], position + layout.size

    def _string(self, position: int) -> tuple[str, int]:
        length, position = self._scalar(_U64, position)
        end = position + length
        if end > len(self._map):
            raise IndexError(f"a string of {length} bytes at byte {position}")
        return self._map[position:end].decode("utf-8", errors="surrogateescape"), end

    def _value(self, kind: int, position: int, depth: int = 0) -> tuple[Any, int]:
        if kind == _STRING:
            return self._string(position)
        if kind == _ARRAY:
            return self._array(position, depth + 1)
        layout = _SCALARS.get(kind)
        if layout is None:
            raise IntegrityError(f"{self.path} is damaged: unknown value type {kind}")
        return self._scalar(layout, position)

    def _array(self, position: int, depth: int) -> tuple[list[Any], int]:
        kind, position = self._scalar(_U32, position)
        count, position = self._scalar(_U64, position)
        if count > MAX_ARRAY_VALUES or depth > MAX_ARRAY_DEPTH:
            raise IndexError(f"an array of {count} values, {depth} deep, at byte {position}")
        layout = _SCALARS.get(kind)
        if layout is not None:
            form = struct.Struct(f"<{count}{layout.format[-1]}")
            return list(form.unpack_from(self._map, position)), position + form.size
        values = []
        for _ in range(count):
            value, position = self._value(kind, position, depth)
            values.append(value)
        return values, position
