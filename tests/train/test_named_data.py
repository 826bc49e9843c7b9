"""Data is named by its file, or by the data set that was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.data.built import RowWriter
from thrifty.errors import TrainingError
from thrifty.home import Home
from thrifty.train.named_data import find_rows
from thrifty.train.rows import Method, SetAside, read_rows


def build(
    home: Home, name: str, kind: str, rows: dict[str, list[Any]], shard_bytes: int = 1 << 20
) -> None:
    folder = home.datasets / name / "v1"
    folder.mkdir(parents=True)
    writer = RowWriter(folder, shard_bytes=shard_bytes)
    for split, own in rows.items():
        for row in own:
            writer.write(split, json.dumps(row).encode() + b"\n")
    files = [vars(one) for one in writer.close()]
    manifest = {"form": 1, "name": name, "version": 1, "kind": kind, "files": files, "thrifty": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def row(number: int) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": f"q{number}"}],
            "completion": [{"role": "assistant", "content": "a"}], "label": True,
            "provenance": {"row": number}}  # fmt: skip


def test_built_sets_are_read_through_all_of_their_files(tmp_path: Path) -> None:
    home = Home(tmp_path)
    build(
        home,
        "chats",
        "kto",
        {"train": [row(n) for n in range(5)], "test": [row(9)]},
        shard_bytes=150,
    )
    found = find_rows(home, "chats", Method.KTO)
    assert found.name == "chats@v1"
    assert len(found.learned) > 1
    read = list(read_rows(found.learned, Method.KTO, SetAside()))
    assert [one.messages[0]["content"] for one in read] == [f"q{n}" for n in range(5)]
    assert [one.line for one in read] == [1, 2, 3, 4, 5]
    (held,) = read_rows(found.held_out, Method.KTO, SetAside())
    assert held.messages[0]["content"] == "q9"
    with pytest.raises(TrainingError, match=r"has kto rows.*--method kto learns from it"):
        find_rows(home, "chats@v1", Method.SFT)
    with pytest.raises(TrainingError, match="no version v2"):
        find_rows(home, "chats@v2", Method.KTO)
    found.learned[0].write_text("changed")
    with pytest.raises(TrainingError, match="is not what was built"):
        find_rows(home, "chats", Method.KTO)


def test_files_are_themselves_and_what_is_neither_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    found = find_rows(Home(tmp_path), str(path), Method.SFT)
    assert (found.name, found.learned, found.held_out) == ("rows.jsonl", [path], [])
    with pytest.raises(TrainingError, match="is no file"):
        find_rows(Home(tmp_path), str(tmp_path / "none.jsonl"), Method.SFT)
    with pytest.raises(TrainingError, match=r"no data set 'none'.*thrifty data build"):
        find_rows(Home(tmp_path), "none", Method.SFT)
