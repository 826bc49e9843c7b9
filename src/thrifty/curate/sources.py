"""From a recipe's sources to files, and from files to pieces that are read one by one.

A file of lines is cut into pieces of some megabytes at the ends of lines, a Parquet file at its row
groups; other files are one piece. Pieces are what processes share, and what a resumed build skips:
their bounds follow from the file alone, never from the number of processes.

Every file is known by its size, time of change and SHA-256, so that one that changes under a build
is found.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from thrifty.curate.needs import need
from thrifty.curate.recipe import Source, name_source
from thrifty.data.built import digest_file
from thrifty.errors import DataError

PIECE_BYTES = 8_000_000
LINES = ("jsonl", "text")
"""Formats of which any line can be the first of a piece."""
READ_FAULTS = (OSError, ValueError, TypeError, LookupError, NotImplementedError, OverflowError)
"""What pyarrow raises for files that are damaged or that it does not know."""
SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".txt": "text", ".md": "text",
}  # fmt: skip
_OF_FOLDERS = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"}
"""What Hugging Face's `datasets` writes beside the data; `cache-*.arrow` are what `map` keeps."""
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "test": "test", "testing": "test", "eval": "test",
    "evaluation": "test",
}  # fmt: skip
"""The words by which Hugging Face tells splits apart."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, as it was when the build began."""

    source: int
    """The number of the source in the recipe."""
    name: str
    """The source's name."""
    path: str
    format: str
    bytes: int
    changed_ns: int
    sha256: str


@dataclass(frozen=True)
class Piece:
    """A part of a file: bytes of a file of lines, row groups of a Parquet file, or all of it."""

    number: int
    file: int
    """The number of the file."""
    begin: int
    end: int
    first: int
    """The number of its first record in the file, from 1; 0 where only reading tells."""


def find_files(source: Source, number: int, folder: Path) -> list[SourceFile]:
    """The files of a source by path, in the order of their names. Reads all of them for their
    checksums. Raises `DataError`.
    """
    assert source.path is not None
    named = Path(source.path).expanduser()
    path = named if named.is_absolute() else folder / named
    if any(letter in source.path for letter in "*?["):
        base = Path(path.anchor)
        paths = sorted(one for one in base.glob(str(path.relative_to(base))) if one.is_file())
    elif path.is_dir():
        paths = _leave_out_splits(sorted(p for p in path.rglob("*") if _is_data(p, path)), path)
    else:
        paths = [path]
    if not paths:
        raise DataError(f"the source {name_source(source)!r} has no file: {path} matches none")
    return [describe_file(one, source, number) for one in paths]


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    known = path.suffix.lower() in SUFFIXES or _is_packed(path)
    beside = path.name in _OF_FOLDERS or fnmatch(path.name, "cache-*.arrow")
    return known and not beside and not hidden and path.suffix != ".md" and path.is_file()


def _is_packed(path: Path) -> bool:
    inner = Path(path.stem).suffix.lower()
    return path.suffix.lower() in _PACKED and inner in SUFFIXES and inner != ".md"


def _leave_out_splits(paths: list[Path], folder: Path) -> list[Path]:
    """Of a folder with the split `train` those files that are of no other split: what a data set
    holds out itself is not learned. A file's split stands in its name, or in that of a folder.
    """
    splits = [_find_split(one.relative_to(folder)) for one in paths]
    if "train" not in splits:
        return paths
    return [one for one, split in zip(paths, splits, strict=True) if split in ("train", None)]


def _find_split(path: Path) -> str | None:
    for part in path.parts:
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def describe_file(path: Path, source: Source, number: int) -> SourceFile:
    """What a file is now. Raises `DataError`."""
    if _is_packed(path):
        raise DataError(f"{path} is compressed, which is not read; unpack it, and name {path.stem}")
    form = source.format if source.format != "auto" else SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise DataError(
            f"{path}: its format cannot be told by its name; name it with 'format', such as jsonl"
        )
    try:
        status = path.stat()
        return SourceFile(
            number, name_source(source), str(path), form, status.st_size, status.st_mtime_ns,
            digest_file(path),
        )  # fmt: skip
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def check_unchanged(file: SourceFile) -> None:
    """Raise `DataError` if a file is not what it was when the build began."""
    try:
        status = os.stat(file.path)
        same = (status.st_size, status.st_mtime_ns) == (file.bytes, file.changed_ns)
    except OSError:
        same = False
    if not same:
        raise DataError(
            f"{file.path} was changed while it was read; run this again once nothing writes to it"
        )


def cut_pieces(files: list[SourceFile], piece_bytes: int) -> list[Piece]:
    """The pieces of all files, in order. Raises `DataError`."""
    pieces: list[Piece] = []
    for number, file in enumerate(files):
        if not file.bytes:
            continue
        for begin, end, first in _cut(file, piece_bytes):
            pieces.append(Piece(len(pieces), number, begin, end, first))
    return pieces


def _cut(file: SourceFile, piece_bytes: int) -> Iterator[tuple[int, int, int]]:
    if file.format in LINES:
        yield from _cut_lines(Path(file.path), file.bytes, piece_bytes)
    elif file.format == "parquet":
        parquet, first = need("pyarrow.parquet"), 1
        try:
            groups = parquet.ParquetFile(file.path).metadata
        except READ_FAULTS as error:
            raise DataError(f"{file.path} cannot be read as parquet: {error}") from None
        for group in range(groups.num_row_groups):
            yield group, group + 1, first
            first += groups.row_group(group).num_rows
    else:
        yield 0, file.bytes, 1


def _cut_lines(path: Path, size: int, piece_bytes: int) -> Iterator[tuple[int, int, int]]:
    with path.open("rb") as file:
        begin, line = 0, 1
        while begin < size:
            end = min(size, begin + piece_bytes)
            file.seek(begin)
            count = file.read(end - begin).count(b"\n")
            if end < size:
                rest = b" "
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(piece_bytes)  # a line may be longer than memory
                    end += len(rest)
                count += rest.endswith(b"\n")
            yield begin, end, line
            begin, line = end, line + count


def write_plan(files: list[SourceFile], pieces: list[Piece]) -> str:
    """Files and pieces as JSON."""
    return json.dumps({"files": [asdict(f) for f in files], "pieces": [asdict(p) for p in pieces]})


def read_plan(plan: dict[str, Any]) -> tuple[list[SourceFile], list[Piece]]:
    """The reverse of `write_plan`, once decoded."""
    return [SourceFile(**one) for one in plan["files"]], [Piece(**one) for one in plan["pieces"]]
