"""A folder or a file on this machine, to be copied into the store."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from thrifty.artifacts.artifact import Description, to_name
from thrifty.artifacts.inspect import PICKLE_SUFFIXES, inspect_gguf, inspect_model
from thrifty.artifacts.store import Store
from thrifty.errors import FormatRefused, SourceError
from thrifty.types import OnProgress, Progress

MODEL_SUFFIXES = frozenset(
    {".safetensors", ".gguf", ".json", ".txt", ".model", ".jinja", ".xml", ".bin", ".md"}
)
"""The files of a model folder; `.bin` only beside an OpenVINO `.xml` of the same name."""


def fingerprint(path: Path) -> str:
    """A checksum over the names, sizes and times of the files; it changes when a file does."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else _model_files(path):
        status = file.stat()
        digest.update(os.fsencode(file))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def look_up(path: Path) -> tuple[str, int, Description]:
    """The name that the model at `path` would get, its size in bytes, and its description.

    Writes nothing. Raises `FormatRefused`, `IntegrityError` and `SourceError`.
    """
    files, description = _inspect(path)
    return _name(path), sum(file.stat().st_size for file in files), description


def fetch(path: Path, target: Path, store: Store, on_progress: OnProgress) -> str:
    """Copy the model at `path` into the folder `target`; return a name for it."""
    files, _ = _inspect(path)
    base = path.parent if path.is_file() else path
    total = sum(file.stat().st_size for file in files)
    store.require_space(total, f"copying {path.name}")
    shutil.rmtree(target, ignore_errors=True)
    done = 0
    for file in files:
        copy = target / file.relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        done += file.stat().st_size
        on_progress(Progress("copy", done, total))
    return _name(path)


def _name(path: Path) -> str:
    return to_name(path.stem if path.is_file() else path.name)


def _inspect(path: Path) -> tuple[list[Path], Description]:
    """The model's files and its description.

    Inspected before copying, so that a refusal names the user's own folder.
    """
    if not path.is_file():
        description = inspect_model(path)
        files = _model_files(path)
        if not files:
            raise SourceError(f"{path} contains no model")
        return files, description
    if path.suffix in PICKLE_SUFFIXES:
        raise FormatRefused(
            f"{path} is a pickle file, which can run code when it is read and is refused. "
            "Save the model as safetensors and try again"
        )
    if path.suffix != ".gguf":
        raise FormatRefused(f"{path} is not a .gguf file; name the model's folder instead")
    return [path], inspect_gguf(path)


def _model_files(folder: Path) -> list[Path]:
    files = []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if hidden or not file.is_file() or file.suffix not in MODEL_SUFFIXES:
            continue
        if file.suffix == ".bin" and not file.with_suffix(".xml").exists():
            continue
        files.append(file)
    return files
