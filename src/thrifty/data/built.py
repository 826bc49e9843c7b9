"""Built data sets: their folders on disk, and how their rows are read.

    datasets/NAME/v1/
        manifest.json         what the set is: kind, rows, files with checksums, sources, tokenizer
        train-00000.jsonl     rows, one JSON object a line; `test-00000.jsonl` holds those held out
        train.packs.jsonl     where the recipe packs: the numbers of the rows of each pack
        recipe.yaml           what it was built by
        report.json, report.html

A row is one of five kinds, all rows of a set being of the same one, in the forms of TRL:

    sft    {"messages": [...]}
    dpo    {"prompt": [...], "chosen": [message], "rejected": [message]}
    kto    {"prompt": [...], "completion": [message], "label": true}
    text   {"text": "..."}
    contrastive  {"query": "...", "positive": "...", "negatives"?: ["..."]}

Those of conversations may have `tools` and `chat_template_kwargs`, as a request.
Each has a `provenance` besides, and under `made` what models made of it (`data.augmentation`). A
version is never changed after it was published, with one exception: rows of a person who is to be
forgotten are taken out (`erase_rows`). The building is the work of `curate`; here are neither
recipes nor stages, so that whoever trains needs none of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.errors import DataError
from thrifty.files import replace_atomically, sync, write_atomically
from thrifty.home import make_private_folder

Row = dict[str, Any]

KINDS = ("sft", "dpo", "kto", "contrastive", "text")
TRAIN, TEST = "train", "test"
SPLITS = (TRAIN, TEST)
MANIFEST = "manifest.json"
FORM = 1
"""The number of this form of folders; a later one is refused by name."""
SHARD_BYTES = 256_000_000
"""A file of rows ends once it is this large."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAMED = re.compile(rf"({_NAME.pattern})(?:@v?([0-9]{{1,9}}))?")


@dataclass(frozen=True)
class RowFile:
    """One file of rows, as the manifest has it."""

    split: str
    path: str
    """Relative to the version's folder."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BuiltSet:
    """One version of a built set."""

    folder: Path
    name: str
    version: int
    kind: str
    """One of `KINDS`."""
    files: tuple[RowFile, ...]
    manifest: Mapping[str, Any] = field(repr=False)
    """All of `manifest.json`."""

    @property
    def label(self) -> str:
        """As lineages and commands name it, such as `chats@v3`."""
        return f"{self.name}@v{self.version}"

    @property
    def sha256(self) -> str:
        """A checksum of the rows of all splits."""
        facts = [[one.split, one.rows, one.sha256] for one in self.files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def count(self, split: str | None = None) -> int:
        """How many rows a split has; without one, all of them."""
        return sum(one.rows for one in self.files if split in (None, one.split))

    def read(self, split: str = TRAIN) -> Iterator[Row]:
        """The rows of a split, in their order, as a stream. Raises `DataError`."""
        for line in self._read_lines(split):
            yield _parse(line, self)

    def read_row(self, number: int) -> tuple[str, Row]:
        """The split and the row of a number, counted from 0 through train, then test."""
        left = number
        for one in self.files:
            if 0 <= left < one.rows:
                with (self.folder / one.path).open("rb") as file:
                    for line in file:
                        if not left:
                            return one.split, _parse(line, self)
                        left -= 1
            left -= one.rows
        raise DataError(
            f"{self.label} has no row {number}; its rows are 0 to {max(0, self.count() - 1)}"
        )

    def index(self, split: str = TRAIN) -> RowIndex:
        """The rows of a split by their numbers, for orders of one's own. Raises `DataError`."""
        return RowIndex(self, split)

    def read_packs(self, split: str = TRAIN) -> Iterator[list[int]]:
        """The packs of a split: numbers of rows (counted within the split) that together have no
        more tokens than a pack. Raises `DataError` if the set was built without `pack`.
        """
        path = self.folder / f"{split}.packs.jsonl"
        if not path.exists():
            raise DataError(f"{self.label} was built without 'pack' in its recipe")
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def check_tokenizer(self, identity: str) -> None:
        """Raise `DataError` if lengths and packs were counted by another tokenizer than that of
        this identity (`data.token_lengths.identify`).
        """
        known = (self.manifest.get("tokenizer") or {}).get("identity")
        if known is not None and known != identity:
            raise DataError(
                f"{self.label} has lengths in tokens of {self.manifest['tokenizer']['model']}, and "
                "this tokenizer, or its chat template, is another; build the set again with "
                "'tokenizer:' naming the model that is trained"
            )

    def check(self) -> None:
        """Compare all files of rows with their checksums. Raises `DataError`."""
        for one in self.files:
            path = self.folder / one.path
            if not path.exists() or digest_file(path) != one.sha256:
                raise DataError(
                    f"{path} is not what was built; remove {self.label} and build it again"
                )

    def _read_lines(self, split: str) -> Iterator[bytes]:
        if split not in SPLITS:
            raise DataError(f"{split!r} is no split; splits are {', '.join(SPLITS)}")
        for one in self.files:
            if one.split == split:
                try:
                    with (self.folder / one.path).open("rb") as file:
                        yield from file
                except OSError as error:
                    raise DataError(f"{self.label} cannot be read: {error}") from None


class RowIndex:
    """The rows of a split by number. Holds 8 bytes a row, and a file open for each shard."""

    def __init__(self, built: BuiltSet, split: str) -> None:
        self._built = built
        paths = [built.folder / one.path for one in built.files if one.split == split]
        self._files = [path.open("rb") for path in paths]
        offsets = [_find_lines(path) for path in paths]
        self._offsets = offsets
        self._starts = np.cumsum([0, *(len(one) - 1 for one in offsets)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        begin, end = self._offsets[shard][number - self._starts[shard] :][:2]
        return _parse(
            os.pread(self._files[shard].fileno(), int(end - begin), int(begin)), self._built
        )

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _find_lines(path: Path, block: int = 1 << 22) -> npt.NDArray[np.int64]:
    """Where the lines of a file begin, and where the last one ends: [lines + 1]."""
    found = [np.zeros(1, np.int64)]
    at = 0
    with path.open("rb") as file:
        while piece := file.read(block):
            ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n"))
            found.append(ends + (at + 1))
            at += len(piece)
    return np.concatenate(found)


def _parse(line: bytes, built: BuiltSet) -> Row:
    try:
        row: Row = json.loads(line)
    except ValueError:
        raise DataError(f"{built.label} is damaged: a row is not JSON; build it again") from None
    return row


# Names and versions


def open_set(folder: Path, named: str) -> BuiltSet:
    """The set of a name in the folder of data sets: `chats@v3`, or `chats` for the newest version.

    Raises `DataError`.
    """
    found = _NAMED.fullmatch(named)
    if found is None:
        raise DataError(f"{named!r} is not a name of a data set, such as chats or chats@v3")
    versions = list_versions(folder, found[1])
    if not versions:
        known = ", ".join(sorted({one.name for one in list_sets(folder)})) or "none"
        raise DataError(
            f"there is no data set {found[1]!r}; there are: {known}. Build one: "
            f"thrifty data build RECIPE.yaml --out {found[1]}"
        )
    version = int(found[2]) if found[2] else versions[-1]
    if version not in versions:
        raise DataError(f"{found[1]} has no version v{version}; its newest is v{versions[-1]}")
    return _load(folder / found[1] / f"v{version}")


def list_versions(folder: Path, name: str) -> list[int]:
    """The numbers of a set's versions, the newest last."""
    own = folder / name
    names = [path.name for path in own.iterdir()] if own.is_dir() else []
    return sorted(int(one[1:]) for one in names if re.fullmatch(r"v[0-9]{1,9}", one))


def list_sets(folder: Path) -> list[BuiltSet]:
    """All versions of all sets, by name. Raises `DataError`."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [
        _load(folder / name / f"v{version}")
        for name in names
        if _NAME.fullmatch(name)
        for version in list_versions(folder, name)
    ]


def remove_set(folder: Path, named: str) -> list[str]:
    """Remove a version (`chats@v3`), or all of a set's (`chats`); returns their labels. Raises
    `DataError`.
    """
    first = open_set(folder, named)
    numbers = [first.version] if "@" in named else list_versions(folder, first.name)
    for number in numbers:
        doomed = folder / first.name / f"v{number}"
        # Renamed first, so that a version is there whole or not at all.
        aside = doomed.with_name(f".removed-v{number}-{os.getpid()}")
        os.replace(doomed, aside)
        shutil.rmtree(aside)
    if "@" not in named:
        shutil.rmtree(folder / first.name, ignore_errors=True)
    return [f"{first.name}@v{number}" for number in numbers]


def check_name(name: str) -> str:
    """A name that a set may have. Raises `DataError`."""
    if _NAME.fullmatch(name) is None:
        raise DataError(
            f"{name!r} cannot be a set's name; take up to 64 letters, digits, '.', '_' and '-', of "
            "which the first is a letter or digit"
        )
    return name


def _load(folder: Path) -> BuiltSet:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["form"] > FORM:
            raise DataError(f"{folder} was written by a newer Thrifty ({manifest['thrifty']})")
        files = tuple(RowFile(**one) for one in manifest["files"])
        return BuiltSet(
            folder, manifest["name"], manifest["version"], manifest["kind"], files, manifest
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a built data set ({error!r})") from None


# Writing


class RowWriter:
    """Writes the rows of a version's splits to its files. `close` gives what the manifest needs."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._open: dict[str, tuple[Any, Any, list[int]]] = {}
        self._done: list[RowFile] = []

    def write(self, split: str, line: bytes) -> None:
        """Append one row, as a line of JSON with its end. Raises `OSError`."""
        if split not in self._open:
            shard = sum(one.split == split for one in self._done)
            file = (self._folder / f"{split}-{shard:05d}.jsonl").open("wb")
            self._open[split] = (file, hashlib.sha256(), [0, 0])
        file, digest, counts = self._open[split]
        file.write(line)
        digest.update(line)
        counts[0] += 1
        counts[1] += len(line)
        if counts[1] >= self._shard_bytes:
            self._finish(split)

    def close(self) -> tuple[RowFile, ...]:
        """Flush all files to the disk; returns them, train first. Raises `OSError`."""
        for split in list(self._open):
            self._finish(split)
        return tuple(sorted(self._done, key=lambda one: (SPLITS.index(one.split), one.path)))

    def _finish(self, split: str) -> None:
        file, digest, counts = self._open.pop(split)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        name = Path(file.name).name
        self._done.append(RowFile(split, name, counts[0], counts[1], digest.hexdigest()))


def publish(staging: Path, folder: Path, manifest: Mapping[str, Any]) -> BuiltSet:
    """Make the files in `staging` the next version of the set that `manifest` names.

    A version is there whole or not at all. Raises `OSError`.
    """
    name = manifest["name"]
    own = make_private_folder(folder / name)
    while True:
        version = max(list_versions(folder, name), default=0) + 1
        full = {"form": FORM, **manifest, "version": version}
        write_atomically(staging / MANIFEST, json.dumps(full, indent=1) + "\n", mode=0o600)
        target = own / f"v{version}"
        try:
            os.rename(staging, target)
        except OSError:
            if target.exists():
                continue  # another build was quicker
            raise
        sync(own)
        return _load(target)


def erase_rows(built: BuiltSet, is_doomed: Callable[[Row], bool], at_s: float) -> int:
    """Take rows out of a published version, for a person who is to be forgotten; returns how many.

    The manifest notes how many and when. Packs go, because the numbers of their rows are others
    now. If it is interrupted, the same call ends it. Raises `OSError` and `DataError`.
    """
    for left_behind in built.folder.glob(".*.jsonl-*"):
        left_behind.unlink(missing_ok=True)  # of an erasure that was killed; see `thrifty.files`
    removed = 0
    for place, one in enumerate(built.files):
        doomed, left = _find_doomed(built, one, is_doomed)
        if not doomed:
            continue
        for split in SPLITS:
            (built.folder / f"{split}.packs.jsonl").unlink(missing_ok=True)
        # Before the rows go: whoever finds them there again comes to the same file, while a file
        # without them would not tell that the manifest is to be changed.
        built = _note_erased(built, place, left, at_s)
        path = built.folder / one.path
        with (
            replace_atomically(path, mode=0o600) as temporary,
            path.open("rb") as file,
            temporary.open("wb") as target,
        ):
            target.writelines(line for number, line in enumerate(file) if number not in doomed)
        removed += len(doomed)
    return removed


def _find_doomed(
    built: BuiltSet, one: RowFile, is_doomed: Callable[[Row], bool]
) -> tuple[set[int], RowFile]:
    """The numbers of the lines of a file that have to go, and what the file is without them."""
    doomed: set[int] = set()
    digest = hashlib.sha256()
    rows = size = 0
    with (built.folder / one.path).open("rb") as file:
        for number, line in enumerate(file):
            if is_doomed(_parse(line, built)):
                doomed.add(number)
            else:
                digest.update(line)
                rows += 1
                size += len(line)
    return doomed, RowFile(one.split, one.path, rows, size, digest.hexdigest())


def _note_erased(built: BuiltSet, place: int, left: RowFile, at_s: float) -> BuiltSet:
    """Note what a file becomes, and how many rows were erased at that time."""
    gone = built.files[place].rows - left.rows
    files = [*built.files[:place], left, *built.files[place + 1 :]]
    erased = {one["at_s"]: one["rows"] for one in built.manifest.get("erased", [])}
    if gone:
        erased[at_s] = erased.get(at_s, 0) + gone
    manifest = {
        **built.manifest, "files": [vars(one) for one in files],
        "erased": [{"at_s": time_s, "rows": rows} for time_s, rows in erased.items()],
    }  # fmt: skip
    text = json.dumps(manifest, indent=1) + "\n"
    write_atomically(built.folder / MANIFEST, text, mode=0o600)
    return _load(built.folder)


def digest_file(path: Path) -> str:
    """The SHA-256 of a file's content. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
