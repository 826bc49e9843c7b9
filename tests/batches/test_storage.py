"""The folder of files: storing and sweeping."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from thrifty.batches.storage import ORPHAN_S, Storage
from thrifty.files import temporary_path


def test_a_stored_file_is_private(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "files")
    data = os.urandom(3_000_000)
    file_id = storage.store(io.BytesIO(data), 1000, 2_500_000)
    path = storage.path(file_id)
    assert path.read_bytes() == data[1000:2_500_000]
    assert (path.stat().st_mode & 0o777, storage.folder.stat().st_mode & 0o777) == (0o600, 0o700)
    storage.remove(file_id)
    storage.remove(file_id)
    assert list(storage.folder.iterdir()) == []


def test_an_upload_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "files")
    with pytest.raises(OSError, match="ended early"):
        storage.store(io.BytesIO(b"short"), 0, 100)
    assert list(storage.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "file-", "../file-x", "file-" + "g" * 28, ".runner"])
def test_an_invalid_id_has_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a file id"):
        Storage(tmp_path).path(name)


def test_only_old_unknown_files_are_swept(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    known, old, fresh = (storage.store(io.BytesIO(b"x"), 0, 1) for _ in range(3))
    torn = [temporary_path(storage.path(known)), tmp_path / f"{known}.new"]
    for path in torn:
        path.write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("not ours")
    past_s = time.time() - ORPHAN_S - 10
    for path in (storage.path(known), storage.path(old), *torn, tmp_path / "notes.txt"):
        os.utime(path, (past_s, past_s))

    def find_known(names: Iterable[str]) -> set[str]:
        assert fresh not in set(names)
        return {known}

    assert storage.sweep(find_known) == 3
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {known, fresh, "notes.txt"}
