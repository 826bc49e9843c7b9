"""Files as others write them: types of CSV and Parquet, damaged files, folders of data sets."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.curate.made import make_chats, talk, write_lines, write_sentence
from thrifty.curate import sources
from thrifty.curate.build import build_data, describe_outcome
from thrifty.curate.history import read_time
from thrifty.curate.read import Broken, read_piece
from thrifty.curate.recipe import Source
from thrifty.curate.sources import cut_pieces, find_files
from thrifty.data.built import BuiltSet
from thrifty.errors import DataError
from thrifty.home import Home


def build(tmp_path: Path, path: Path, **keys: Any) -> BuiltSet:
    options = {key: keys.pop(key) for key in ("workers", "piece_bytes") if key in keys}
    recipe = {"sources": [{"path": str(path)}], "split": 0, **keys}
    return build_data(recipe, "made", home=Home(tmp_path / "home"), **options)


def judged(count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [
        {
            "prompt": write_sentence(rng, 9), "completion": write_sentence(rng, 9),
            "label": number % 2, "user": 17, "time": 1000 - number,
        }
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_labels_times_and_names_in_the_types_of_a_file(tmp_path: Path, form: str) -> None:
    rows = judged(6)
    rows[5] |= {"label": -1}
    rows[4] |= {"user": "x" if form == "csv" else 1.5, "time": "soon" if form == "csv" else None}
    path = tmp_path / f"rows.{form}"
    if form == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = {key: [row[key] for row in rows] for key in rows[0]}
        floats = {
            key: arrow.array(columns[key], arrow.float64()) for key in ("label", "user", "time")
        }
        parquet.write_table(arrow.table({**columns, **floats}), path)
    built = build(tmp_path, path, kind="kto", split={"test": 0, "time": True})
    found = list(built.read())
    assert [row["label"] for row in found] == [False, True, False, True, False]
    report = json.loads((built.folder / "report.json").read_text())
    assert report["removed"] == {"format": {"has a label other than true and false, 1 and 0": 1}}
    assert report["unread"] == ({"time": 1} if form == "csv" else {"user": 1})
    whole = build_data(
        {"kind": "kto", "sources": [{"path": str(write_lines(tmp_path / "r.jsonl", rows[:4]))}], "split": 0},
        "json", home=Home(tmp_path / "home"),
    )  # fmt: skip
    (subject,) = {row["provenance"]["subjects"][0] for row in whole.read()}
    assert [row["provenance"].get("subjects") for row in found].count([subject]) == 4
    kept = build(tmp_path, path, kind="sft")
    assert kept.count() == 2


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("damage", ["head", "middle", "texts"])
def test_a_damaged_parquet_file_is_an_error_with_its_path(
    tmp_path: Path, damage: str, workers: int
) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rng = random.Random(1)
    texts = [write_sentence(rng, 30) for _ in range(40)]
    table = arrow.table({"text": texts})
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    if damage == "texts":
        at = content.index(texts[12].encode())
        content[at] = 0xFF
    else:
        at = 0 if damage == "head" else 4
        content[-4 if damage == "head" else at : len(content) if damage == "head" else at + 60] = (
            b"\xff" * (4 if damage == "head" else 60)
        )
    path.write_bytes(content)
    if damage == "texts":
        built = build(tmp_path, path, kind="text", workers=workers)
        assert built.count() == 39
        (line,) = (built.folder / "set-aside.jsonl").read_text().splitlines()
        assert json.loads(line) == {"path": str(path), "line": 13, "reason": "not UTF-8"}
        return
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as parquet"):
        build(tmp_path, path, kind="text", workers=workers)


def test_an_array_and_a_csv_that_end_too_early_are_errors(tmp_path: Path) -> None:
    rows = json.dumps(make_chats(20))
    array = tmp_path / "rows.json"
    for broken in (rows[: len(rows) // 2], rows.replace('{"messages"', '{"messages', 1)):
        array.write_text(broken)
        with pytest.raises(
            DataError, match=r"rows\.json is damaged, or ends too early, at its record"
        ):
            build(tmp_path, array)
    table = tmp_path / "rows.csv"
    table.write_text('question,answer\nOne?,Yes.\n"Two?,No.\nThree?,Yes.\n')
    with pytest.raises(
        DataError, match=r"rows\.csv: a quote that opens in record 2 is never closed"
    ):
        build(tmp_path, table)


def test_a_fault_of_ours_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("thrifty.curate.piece.make_row", fail)
    path = write_lines(tmp_path / "rows.jsonl", make_chats(2))
    with pytest.raises(
        DataError, match=r"rows\.jsonl, piece 0, cannot be built: RuntimeError: no such"
    ):
        build(tmp_path, path)


def test_a_long_line_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(talk("A question?", "x" * 5000)) + "\n{}\n")
    files = find_files(Source(path=str(path)), 0, tmp_path)
    pieces = cut_pieces(files, 100)
    assert [(one.begin, one.end, one.first) for one in pieces] == [
        (0, path.stat().st_size - 3, 1), (path.stat().st_size - 3, path.stat().st_size, 2),
    ]  # fmt: skip


def list_found(folder: Path) -> list[str]:
    found = find_files(Source(path=str(folder)), 0, folder)
    return [str(Path(one.path).relative_to(folder)) for one in found]


def test_of_a_folder_with_splits_the_one_to_learn_from_is_read(tmp_path: Path) -> None:
    for name in (
        "train/data-00000-of-00001.arrow", "train/cache-1f.arrow", "train/state.json",
        "validation/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow", "dataset_dict.json",
    ):  # fmt: skip
        (tmp_path / "saved" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "saved" / name).write_text("{}")
    assert list_found(tmp_path / "saved") == ["train/data-00000-of-00001.arrow"]
    assert list_found(tmp_path / "saved" / "test") == ["data-00000-of-00001.arrow"]
    hub, plain = tmp_path / "hub" / "data", tmp_path / "plain"
    hub.mkdir(parents=True)
    plain.mkdir()
    for split in ("train", "validation", "test"):
        (hub / f"{split}-00000-of-00001.parquet").touch()
    assert list_found(tmp_path / "hub") == ["data/train-00000-of-00001.parquet"]
    for name in ("monday.jsonl", "test.jsonl", "latest.jsonl"):
        (plain / name).touch()
    assert list_found(plain) == ["latest.jsonl", "monday.jsonl", "test.jsonl"]


@pytest.mark.parametrize("ending", sources._PACKED)
def test_compressed_files_are_errors(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write_lines(folder / "a.jsonl", make_chats(2))
    (folder / f"b.jsonl{ending}").touch()
    for path in (folder, folder / f"b.jsonl{ending}"):
        with pytest.raises(DataError, match=r"is compressed, which is not read; unpack it"):
            build(tmp_path, path)


def test_calls_without_tools_are_counted(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    rows = make_chats(2)
    rows[0]["messages"][1] |= {"content": None, "tool_calls": [call]}
    built = build(tmp_path, write_lines(tmp_path / "rows.jsonl", rows))
    assert describe_outcome(built)["removed"] == {"format": 1}


def read(folder: Path, name: str, data: bytes) -> list[Any]:
    """What is read of a file with these bytes."""
    (folder / name).write_bytes(data)
    files = find_files(Source(path=name), 0, folder)
    return [row for piece in cut_pieces(files, 8_000_000) for _, row in read_piece(files[0], piece)]


def test_columns_without_a_name_are_columns(tmp_path: Path) -> None:
    """Such as the index that pandas writes first, and what a comma at each line's end makes."""
    rows = read(tmp_path, "a.csv", b",prompt,completion,\n0,q,a,\n")
    assert [(row["prompt"], row["completion"]) for row in rows] == [("q", "a")]
    (row,) = read(tmp_path, "b.csv", b",prompt\n0,q,more\n")
    assert row == Broken("another number of fields than the header")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"prompt,answer,answer\nq,a,b\n", "several columns that are called 'answer'"),
        ("a.csv", b"prompt;answer\nq;a\n", "separates fields by ';'"),
        ("a.tsv", b"prompt;answer\nq;a\n", "separates fields by ';'"),
        (
            "a.csv",
            "prompt,answer\nq,a\n".encode("utf-16"),
            "is written in UTF-16; save it as UTF-8",
        ),
        ("a.txt", "words\nmore\n".encode("utf-16"), "is written in UTF-16; save it as UTF-8"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), "is written in UTF-16; save it as UTF-8"),
    ],
)
def test_files_that_would_be_read_wrongly_are_errors(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, name, data)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a.txt", "a\n\ufeffb\n".encode("utf-8-sig")) == [
        {"text": "a"}, {"text": "\ufeffb"},
    ]  # fmt: skip
    assert read(tmp_path, "a.jsonl", '{"text": "a"}\n'.encode("utf-8-sig")) == [{"text": "a"}]
    assert read(tmp_path, "a.csv", '"text"\na\n'.encode("utf-8-sig")) == [{"text": "a"}]


def test_objects_of_a_column_do_not_get_the_fields_of_others(tmp_path: Path) -> None:
    """Arrow fills them with nothing, which a chat template would show to the model."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"tools": [{"name": "f", "parameters": {"x": {"type": "string"}}}, {"name": "g", "parameters": {"y": {"type": "string"}}}],
         "chat_template_kwargs": {"enable_thinking": False}},
        {"tools": None, "chat_template_kwargs": {"date": "today"}},
    ]  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read(tmp_path, "rows.parquet", (tmp_path / "rows.parquet").read_bytes()) == rows


def test_times_that_python_does_not_have_end_no_build(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    times = arrow.array([1_234_567_890_123_456_789, None], arrow.timestamp("ns", "UTC"))
    parquet.write_table(arrow.table({"text": ["a", "b"], "time": times}), tmp_path / "a.parquet")
    rows = read(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert [row["text"] for row in rows] == ["a", "b"]
    assert read_time(rows[0]["time"]) == pytest.approx(1_234_567_890.123_456)
    far = arrow.array([400_000_000_000_000, 0], arrow.timestamp("ms"))
    parquet.write_table(arrow.table({"text": ["a", "b"], "time": far}), tmp_path / "b.parquet")
    rows = read(tmp_path, "b.parquet", (tmp_path / "b.parquet").read_bytes())
    assert [isinstance(row, Broken) for row in rows] == [True, False]
