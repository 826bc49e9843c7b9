"""Safetensors are read exactly, and damage is detected."""

from __future__ import annotations

import json
import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.artifacts.damaged import little_memory, read_safetensors
from tests.artifacts.models import encode_safetensors, write_safetensors
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.errors import FormatRefused, IntegrityError

WHOLE = encode_safetensors(
    {
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b.weight": np.arange(6, dtype=np.float16),
    },
    metadata={"format": "pt"},
)
HEADER_END = 8 + struct.unpack_from("<Q", WHOLE)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("safetensors")


@given(
    tensor=hnp.arrays(
        st.sampled_from(
            [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8]
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements=st.integers(0, 100),
    )
)
def test_every_dtype_and_shape_comes_back_as_float32(folder: Path, tensor: Any) -> None:
    path = write_safetensors(folder / "any.safetensors", {"before": np.ones(3), "x": tensor})
    files = SafetensorsFiles([path])
    read = files.read_tensor("x")
    assert read.dtype == np.float32
    assert read.shape == tensor.shape
    np.testing.assert_array_equal(read, tensor.astype(np.float32))
    assert files.parameters() == tensor.size + 3


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=8), elements=st.floats(width=16))
)
def test_half_precision_keeps_infinities_and_nans(folder: Path, values: Any) -> None:
    path = write_safetensors(folder / "half.safetensors", {"x": values.astype(np.float16)})
    np.testing.assert_array_equal(SafetensorsFiles([path]).read_tensor("x"), values)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=8), elements=st.floats(width=32))
)
def test_bfloat16_is_the_upper_half_of_a_float32(folder: Path, values: Any) -> None:
    path = write_safetensors(folder / "bf16.safetensors", {"x": values}, {"x": "BF16"})
    expected = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    np.testing.assert_array_equal(SafetensorsFiles([path]).read_tensor("x"), expected)


def test_tensors_of_several_files_are_one_checkpoint(folder: Path) -> None:
    one = write_safetensors(folder / "model-1.safetensors", {"a": np.ones((2, 2), np.float32)})
    two = write_safetensors(folder / "model-2.safetensors", {"b": np.zeros(3, np.float32)})
    files = SafetensorsFiles([one, two])
    assert sorted(files.names) == ["a", "b"]
    assert "a" in files
    assert "c" not in files
    assert files.parameters() == 7
    assert files.read_tensor("b").shape == (3,)


def test_unreadable_dtype_is_refused_with_what_is_read(folder: Path) -> None:
    path = folder / "fp8.safetensors"
    path.write_bytes(encode_safetensors({"w": np.zeros(4, np.uint8)}, {"w": "F8_E4M3"}))
    with pytest.raises(
        FormatRefused, match=r"tensor w has the type 'F8_E4M3'.*store the checkpoint in BF16"
    ):
        SafetensorsFiles([path])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "not a JSON object"),
        ("text", "not a JSON object"),
        ({"w": None}, "tensor w has no valid entry"),
        ({"w": {"dtype": "F32"}}, "tensor w has no valid entry"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "tensor w has no valid entry"),
        ({"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "tensor w has"),
        ({"w": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, "outside the file"),
        ({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "outside the file"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "outside the file"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, "outside the file"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "outside the file"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, "outside the file"),
        ({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, "outside the file"),
        # 2**32 x 2**32 is 0 in 64-bit arithmetic.
        ({"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, "outside"),
        ({"w": {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 4]}}, "outside the file"),
        ({"w": {"dtype": "F32", "shape": [1] * 40, "data_offsets": [0, 4]}}, "outside the file"),
    ],
)
def test_impossible_headers_are_refused(folder: Path, header: Any, message: str) -> None:
    encoded = json.dumps(header).encode()
    path = folder / "impossible.safetensors"
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(16))
    with pytest.raises((IntegrityError, FormatRefused), match=message):
        SafetensorsFiles([path])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as safetensors"),
        (b"1234", "it has 4 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "its header is incomplete"),
        (struct.pack("<Q", 3) + b"{}", "its header is incomplete"),
        (struct.pack("<Q", 4) + b"{{}}", "its header is not JSON"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "its header is not JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "its header is not JSON"),
    ],
    ids=range(7),
)
def test_broken_files_are_named(folder: Path, data: bytes, message: str) -> None:
    path = folder / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"broken.safetensors .*{message}"), little_memory():
        SafetensorsFiles([path])


@given(length=st.integers(0, len(WHOLE) - 1))
@settings(deadline=timedelta(seconds=10))
def test_file_cut_anywhere_is_refused(folder: Path, length: int) -> None:
    path = folder / "cut.safetensors"
    path.write_bytes(WHOLE[:length])
    assert read_safetensors(path) is not None


@given(
    changes=st.lists(
        st.tuples(st.integers(0, HEADER_END - 1), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@settings(deadline=timedelta(seconds=10), max_examples=300)
def test_changed_headers_are_read_or_refused_and_nothing_else(
    folder: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(WHOLE)
    for position, value in changes:
        data[position] = value
    path = folder / "changed.safetensors"
    path.write_bytes(data)
    read_safetensors(path)
