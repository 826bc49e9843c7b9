"""What is in the page cache is measured, and brought back."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from thrifty.page_cache import Cached, bring_into_cache, measure_cached

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
SIZE = 3_000_001


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_files_are_brought_back(tmp_path: Path) -> None:
    path, empty = tmp_path / "weights", tmp_path / "empty"
    path.write_bytes(b"w" * SIZE)
    empty.touch()
    bring_into_cache([path, empty])
    assert measure_cached([path, empty]) == Cached(SIZE, SIZE)
    drop(path)
    found = measure_cached([path, empty])
    assert found is not None
    if found.share == 1.0:
        pytest.skip(f"the file system of {tmp_path} keeps everything in memory")
    bring_into_cache([path, empty])
    assert measure_cached([path, empty]) == Cached(SIZE, SIZE)


def test_nothing_is_whole_and_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert Cached(0, 0).share == 1.0
    assert Cached(1, 4).share == 0.25
    with pytest.raises(FileNotFoundError):
        measure_cached([tmp_path / "nowhere"])
