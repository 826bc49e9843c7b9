"""Atomic file replacement: what a reader sees, and what a failed write leaves behind."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from thrifty.files import replace_atomically, sync, temporary_path, write_atomically


def test_bytes_and_text_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_complete_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    path.write_bytes(b"old")
    with replace_atomically(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, np.arange(3))
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert list(tmp_path.glob("*.npy")) == [path]
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(b"old")
    interrupted = KeyboardInterrupt()
    with contextlib.suppress(KeyboardInterrupt), replace_atomically(path) as temporary:
        temporary.write_bytes(b"half of")
        raise interrupted
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "note", b"")


def test_permissions_are_those_asked_for(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "shared", b"")
        write_atomically(tmp_path / "private", b"", mode=0o600)
    finally:
        os.umask(umask)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_a_folder_and_a_file_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sync(tmp_path)
    sync(tmp_path / "file")


def test_temporary_names_differ(tmp_path: Path) -> None:
    assert temporary_path(tmp_path / "a.json") != temporary_path(tmp_path / "a.json")
