"""Built sets on disk: versions, rows by number, what damage and a newer form say, and erasure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from thrifty.data.built import (
    RowWriter,
    check_name,
    erase_rows,
    list_sets,
    open_set,
    publish,
    remove_set,
)
from thrifty.errors import DataError


def publish_rows(folder: Path, name: str, rows: dict[str, list[Any]], **facts: Any) -> str:
    staging = folder / ".work" / name
    staging.mkdir(parents=True)
    writer = RowWriter(staging, shard_bytes=100)
    for split, values in rows.items():
        for value in values:
            writer.write(split, (json.dumps(value) + "\n").encode())
    files = [vars(one) for one in writer.close()]
    manifest = {"name": name, "kind": "text", "files": files, "thrifty": "0", **facts}
    return publish(staging, folder, manifest).label


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"row {number} ünï"} for number in range(start, start + count)]


def test_rows_are_read_by_split_and_by_number(tmp_path: Path) -> None:
    assert publish_rows(tmp_path, "notes", {"train": texts(9), "test": texts(2, 9)}) == "notes@v1"
    built = open_set(tmp_path, "notes")
    assert len([one for one in built.files if one.split == "train"]) > 1
    assert list(built.read("train")) == texts(9)
    assert (built.count(), built.count("test")) == (11, 2)
    assert built.read_row(10) == ("test", {"text": "row 10 ünï"})
    index = built.index("train")
    assert [index[number] for number in (8, 0, 5)] == [texts(9)[n] for n in (8, 0, 5)]
    assert len(index) == 9
    with pytest.raises(IndexError):
        index[9]
    index.close()
    built.check()
    with pytest.raises(DataError, match="has no row 11; its rows are 0 to 10"):
        built.read_row(11)
    with pytest.raises(DataError, match="no split"):
        list(built.read("dev"))


def test_versions_count_up_and_are_found_by_name(tmp_path: Path) -> None:
    for _ in range(2):
        publish_rows(tmp_path, "notes", {"train": texts(1)})
    publish_rows(tmp_path, "other", {"train": texts(1)})
    assert [one.label for one in list_sets(tmp_path)] == ["notes@v1", "notes@v2", "other@v1"]
    assert open_set(tmp_path, "notes").version == 2
    assert open_set(tmp_path, "notes@v1").version == 1
    assert open_set(tmp_path, "notes@v1").sha256 == open_set(tmp_path, "notes@v2").sha256
    with pytest.raises(DataError, match="no version v3; its newest is v2"):
        open_set(tmp_path, "notes@v3")
    with pytest.raises(DataError, match="there are: notes, other"):
        open_set(tmp_path, "none")
    with pytest.raises(DataError, match="is not a name"):
        open_set(tmp_path, "../notes")
    assert remove_set(tmp_path, "notes@v1") == ["notes@v1"]
    assert remove_set(tmp_path, "notes") == ["notes@v2"]
    assert [one.label for one in list_sets(tmp_path)] == ["other@v1"]


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a@v1", "x" * 65])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(DataError, match="cannot be a set's name"):
        check_name(name)


def test_damage_and_a_newer_form_are_said(tmp_path: Path) -> None:
    publish_rows(tmp_path, "notes", {"train": texts(3)})
    built = open_set(tmp_path, "notes")
    file = built.folder / built.files[0].path
    file.write_bytes(file.read_bytes().replace(b"row 0", b"row x"))
    with pytest.raises(DataError, match="is not what was built"):
        built.check()
    manifest = built.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"form": 1', '"form": 99'))
    with pytest.raises(DataError, match="newer Thrifty"):
        open_set(tmp_path, "notes")


def test_lengths_belong_to_a_tokenizer(tmp_path: Path) -> None:
    publish_rows(
        tmp_path, "notes", {"train": texts(1)}, tokenizer={"model": "small@v1", "identity": "abc"}
    )
    built = open_set(tmp_path, "notes")
    built.check_tokenizer("abc")
    with pytest.raises(DataError, match=r"lengths in tokens of small@v1"):
        built.check_tokenizer("abd")
    with pytest.raises(DataError, match="built without 'pack'"):
        next(built.read_packs())


def test_rows_are_erased_and_the_rest_stays_readable(tmp_path: Path) -> None:
    publish_rows(tmp_path, "notes", {"train": texts(9), "test": texts(2, 9)})
    built = open_set(tmp_path, "notes")
    assert erase_rows(built, lambda row: row["text"].startswith(("row 3 ", "row 9 ")), 5.0) == 2
    after = open_set(tmp_path, "notes")
    after.check()
    assert after.manifest["erased"] == [{"at_s": 5.0, "rows": 2}]
    assert list(after.read("train")) == [row for row in texts(9) if "row 3 " not in row["text"]]
    assert list(after.read("test")) == texts(1, 10)
    assert erase_rows(after, lambda row: False, 6.0) == 0


class Stopped(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("done", range(4), ids=lambda done: f"{done}-replaced")
def test_an_erasure_that_is_interrupted_is_ended_by_the_next(
    tmp_path: Path, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_rows(tmp_path, "notes", {"train": texts(9), "test": texts(2, 9)})

    def is_doomed(row: Any) -> bool:
        return row["text"].startswith(("row 3 ", "row 9 "))

    left, replace = iter(range(done)), os.replace

    def stop(*paths: Path) -> None:
        if next(left, None) is None:
            raise Stopped
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr("thrifty.files.os.replace", stop)
        with pytest.raises(Stopped):
            erase_rows(open_set(tmp_path, "notes"), is_doomed, 5.0)
    (open_set(tmp_path, "notes").folder / ".train-00000.jsonl-1-abc").write_text("half a file")
    erase_rows(open_set(tmp_path, "notes"), is_doomed, 6.0)
    after = open_set(tmp_path, "notes")
    after.check()
    assert (after.count("train"), after.count("test")) == (8, 1)
    assert not any(is_doomed(row) for split in ("train", "test") for row in after.read(split))
    assert sum(one["rows"] for one in after.manifest["erased"]) == 2
    assert not list(after.folder.glob(".*"))
