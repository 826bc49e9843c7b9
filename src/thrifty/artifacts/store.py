"""The artifact store: content-addressed, checked and atomic.

    blobs/<sha256>              one file's bytes, read-only
    artifacts/<id>/             a model: hard links to blobs, and artifact.json
    names/<name>.json           the versions of a name: v1, v2, ... (`names.py`)
    partial/<key>/              unfinished downloads and conversions, which resume from here
    leases/<id>                 locked (flock) by every process that serves the model
    figures/<id>.json           the model's measurements

A model is built in a temporary folder, synced and renamed, so that it is never visible in part. A
process that is killed leaves a `partial/` folder from which the next attempt resumes, and at worst
some blobs that `collect_garbage` removes. Names are small JSON files, replaced atomically. Adding a
model that is already stored repairs its damaged files. The store does not need the database.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from thrifty.artifacts.artifact import (
    Artifact,
    FileEntry,
    Lineage,
    NamedVersion,
    compute_id,
    parse_label,
)
from thrifty.artifacts.bases import find_base_id, load_base, require_unneeded
from thrifty.artifacts.disk import (
    is_at,
    link_file,
    lock_file,
    remove_tree,
    try_hash,
    try_lock_file,
)
from thrifty.artifacts.inspect import inspect_model
from thrifty.artifacts.measurements import (
    Measurement,
    add_measurements,
    read_measurements,
    write_measurement,
)
from thrifty.artifacts.names import FULL, Versions, read_name, write_name
from thrifty.errors import ArtifactError, IntegrityError
from thrifty.files import sync, write_atomically
from thrifty.home import make_private_folder
from thrifty.types import OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes
from thrifty.version import __version__

STALE_PARTIAL_S = 7 * 86400.0
"""A partial download that was not resumed for this long is garbage."""
STALE_TEMPORARY_S = 3600.0
"""A temporary file of this age was left by a killed process."""
_NOTE = "artifact.json"


@dataclass(frozen=True)
class GarbageCollection:
    """The result of a garbage collection."""

    artifacts: tuple[str, ...]
    freed_bytes: int
    kept_in_use: tuple[str, ...]


class Store:
    """The models in one folder. Several processes may use it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # Finding models

    def versions(self) -> list[NamedVersion]:
        """All versions, sorted by name and version."""
        folder = self.root / "names"
        found: list[NamedVersion] = []
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            found += self._read_versions(path.stem)
        return found

    def find(self, label: str) -> tuple[NamedVersion, Artifact]:
        """The version `name@vN`, or the latest version of `name`. Raises `ArtifactError`."""
        name, number = parse_label(label)
        versions = self._read_versions(name)
        if not versions:
            known = sorted({version.name for version in self.versions()})
            hint = f"stored are: {', '.join(known)}" if known else "nothing is stored yet"
            raise ArtifactError(
                f"no model is named {name!r}; {hint}. To fetch one: thrifty pull MODEL"
            )
        for version in reversed(versions):
            if number is None or version.version == number:
                return version, self.load(version.artifact)
        labels = ", ".join(version.label for version in versions)
        raise ArtifactError(f"{label!r} does not exist; existing versions: {labels}")

    def has_name(self, name: str) -> bool:
        """Whether any version has this name."""
        return bool(self._read_versions(name))

    def has(self, artifact_id: str) -> bool:
        """Whether the artifact with this id is here."""
        return (self.folder_of(artifact_id) / _NOTE).exists()

    def load(self, artifact_id: str) -> Artifact:
        """The artifact with this id. Raises `ArtifactError`."""
        path = self.folder_of(artifact_id) / _NOTE
        try:
            return msgspec.json.decode(path.read_bytes(), type=Artifact)
        except FileNotFoundError:
            raise ArtifactError(f"the model {artifact_id} is not in {self.root}") from None
        except (OSError, msgspec.MsgspecError) as error:
            raise IntegrityError(f"{path} is damaged: {error}; fetch the model again") from None

    def folder_of(self, artifact_id: str) -> Path:
        """The read-only folder of an artifact's files."""
        return self.root / "artifacts" / artifact_id

    def find_requested(self, requested: str) -> tuple[NamedVersion, Artifact] | None:
        """The latest version fetched from the source `requested`, if there is one."""
        return self._find_latest(lambda version: version.lineage.requested == requested)

    def find_made(
        self, parent_id: str, recipe: dict[str, Any]
    ) -> tuple[NamedVersion, Artifact] | None:
        """The latest version made by `recipe` from the artifact `parent_id`, if there is one."""
        return self._find_latest(
            lambda version: (
                version.lineage.recipe == recipe
                and any(parent.id == parent_id for parent in version.lineage.parents)
            )
        )

    # Adding models

    @contextlib.contextmanager
    def stage(self, key: str) -> Iterator[Path]:
        """Yield a folder to build in: the same for the same `key`, locked during the block.

        It stays if the block raises, so that the next attempt finds what exists; `add` empties it.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        folder = make_private_folder(self.root / "partial" / digest)
        with lock_file(self.root / "partial" / f"{digest}.lock"):
            make_private_folder(folder)
            yield folder

    def add(
        self,
        folder: Path,
        name: str,
        lineage: Lineage,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> tuple[NamedVersion, Artifact]:
        """Move the model in `folder` into the store as the next version of `name`.

        The same bytes with the same lineage under the same name are the same version. Raises
        `FormatRefused` for unsupported formats, `IntegrityError` for damaged files, and
        `ArtifactError` if writing fails; `folder` is then unchanged.
        """
        parse_label(name)
        description = inspect_model(folder)
        lineage = msgspec.structs.replace(lineage, made_by=f"thrifty {__version__}")
        self._prepare_folders()
        try:
            files = _read_files(folder, on_progress)
            damaged = self._find_damaged_blobs(folder, files)
            artifact = Artifact(compute_id(files), description, files)
            with lock_file(self.root / "store.lock"):
                self._keep_blobs(folder, files, damaged)
                self._publish(artifact)
                version = self._name(name, artifact.id, lineage)
        except OSError as error:
            what = f"{name} could not be stored"
            raise ArtifactError(self.describe_disk_fault(what, error)) from None
        shutil.rmtree(folder, ignore_errors=True)
        return version, artifact

    def record_measurement(
        self, artifact_id: str, kind: str, conditions: dict[str, Any], values: dict[str, Any]
    ) -> Measurement:
        """Record a measurement of a stored model, replacing one under the same conditions.

        The lineage does not change. Raises `ArtifactError`.
        """
        with self._change("the measurement could not be stored"):
            self.load(artifact_id)
            return write_measurement(self.root / "figures", artifact_id, kind, conditions, values)

    def read_measurements(self, artifact_id: str) -> tuple[Measurement, ...]:
        """All recorded measurements of a stored model. Raises `IntegrityError`."""
        return read_measurements(self.root / "figures", artifact_id)

    def add_measurements(self, artifact_id: str, measured: tuple[Measurement, ...]) -> None:
        """Add what was measured of a model elsewhere, under conditions not known here yet."""
        with self._change("a measurement could not be stored"):
            add_measurements(self.root / "figures", artifact_id, measured)

    def require_space(self, needed_bytes: int, what: str) -> None:
        """Raise `ArtifactError` unless the disk has `needed_bytes` and a reserve of 64 MB free."""
        make_private_folder(self.root)
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes + 64_000_000:
            raise ArtifactError(
                f"{what} needs {format_bytes(needed_bytes)}, and {self.root} has "
                f"{format_bytes(free)} free; free some space (thrifty models gc) or set "
                "THRIFTY_HOME to a larger disk"
            )

    def describe_disk_fault(self, what: str, error: OSError) -> str:
        """Why `what` came about, such as "a could not be stored", and what to do about it."""
        if error.errno in FULL:
            return (
                f"the disk is full: {what} in {self.root}; free some space (thrifty models gc) or "
                "set THRIFTY_HOME to a larger disk, and try again"
            )
        hint = ""
        if error.errno in (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK):
            hint = "; it must be on a single file system that supports hard links"
        elif error.errno in (errno.EACCES, errno.EROFS):
            hint = (
                "; set THRIFTY_HOME to a folder you can write to, or use the account that owns it"
            )
        return f"{what} in {self.root}: {error.strerror or error}{hint}"

    # Integrity and removal

    def verify(
        self,
        artifact: Artifact,
        *,
        thorough: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """Raise `IntegrityError` unless every file is as it was stored.

        A file whose size, time and inode have not changed since the last check counts as unchanged;
        `thorough` reads every byte. The base of an adapter is checked, too.
        """
        if artifact.description.base is not None:
            self.verify(load_base(self, artifact), thorough=thorough, on_progress=on_progress)
        folder = self.folder_of(artifact.id)
        stamps_path = self.root / "leases" / f"{artifact.id}.checked"
        stamps = _read_json(stamps_path)
        done, total = 0, artifact.size_bytes
        fresh: dict[str, list[int]] = {}
        for entry in artifact.files:
            path = folder / entry.path
            try:
                status = path.stat()
            except OSError:
                raise IntegrityError(
                    f"{path} is missing; {self._say_how_to_mend(artifact.id)}"
                ) from None
            stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
            if status.st_size != entry.size or (
                (thorough or stamps.get(entry.path) != stamp) and try_hash(path) != entry.sha256
            ):
                raise IntegrityError(
                    f"{path} is damaged: its checksum has changed; "
                    f"{self._say_how_to_mend(artifact.id)}"
                )
            fresh[entry.path] = stamp
            done += entry.size
            on_progress(Progress("check", done, total))
        if fresh != stamps:
            # If the disk is full or read-only, the next check only takes longer.
            with contextlib.suppress(OSError):
                make_private_folder(stamps_path.parent)
                write_atomically(stamps_path, msgspec.json.encode(fresh))

    def _say_how_to_mend(self, artifact_id: str) -> str:
        """What to do about a damaged artifact, with the command for each of its names."""
        try:
            labels = [one.label for one in self.versions() if one.artifact == artifact_id]
        except IntegrityError:
            labels = []
        remove = ", ".join(f"thrifty models rm {label}" for label in labels or ["NAME@vN"])
        return f"remove the model ({remove}) and fetch it again"

    def lease(self, artifact_id: str) -> int:
        """Protect an artifact from removal; returns a file descriptor that a child may inherit.

        The protection ends when every copy of the descriptor is closed, however its holders end.
        """
        path = self.root / "leases" / artifact_id
        make_private_folder(path.parent)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if is_at(descriptor, path):
                return descriptor
            # A garbage collection removed the file while this process waited for it.
            os.close(descriptor)

    def remove(self, label: str) -> NamedVersion:
        """Remove one version (`name@vN`); the next garbage collection removes its files."""
        name, number = parse_label(label)
        if number is None:
            raise ArtifactError(f"name the version to remove, such as {name}@v1")
        with self._change(f"{label} could not be removed"):
            versions = self._read_versions(name)
            gone = [version for version in versions if version.version == number]
            if not gone:
                raise ArtifactError(f"{label!r} does not exist")
            if self._in_use(gone[0].artifact):
                raise ArtifactError(f"{label!r} is being served; stop it first (thrifty down)")
            require_unneeded(self, gone[0])
            self._write_versions(name, [v for v in versions if v.version != number])
        return gone[0]

    def collect_garbage(self, protected: frozenset[str] = frozenset()) -> GarbageCollection:
        """Remove the artifacts that have no name and are not being served.

        `protected` are the ids of other artifacts to keep, such as those of deployments that are
        scaled down.
        """
        with self._change("no garbage could be removed"):
            self._prepare_folders()
            before = self._size()
            kept = protected | {version.artifact for version in self.versions()}
            kept |= {base for one in kept if (base := find_base_id(self, one)) is not None}
            removed: list[str] = []
            in_use: list[str] = []
            for folder in sorted((self.root / "artifacts").iterdir()):
                if folder.name.startswith("."):
                    remove_tree(folder)
                elif folder.name not in kept:
                    with try_lock_file(self.root / "leases" / folder.name) as free:
                        (removed if free else in_use).append(folder.name)
                        if free:
                            self._discard(folder)
            for blob in (self.root / "blobs").iterdir():
                if blob.stat().st_nlink == 1:
                    blob.unlink()
            freed = max(0, before - self._size())
            self._remove_stale_partials()
            self._remove_stale_temporaries()
        return GarbageCollection(tuple(removed), freed, tuple(in_use))

    # Private

    @contextlib.contextmanager
    def _change(self, fault: str) -> Iterator[None]:
        """Hold the store's lock. Raises `ArtifactError`, with `fault`, where the disk fails."""
        try:
            with lock_file(self.root / "store.lock"):
                yield
        except OSError as error:
            raise ArtifactError(self.describe_disk_fault(fault, error)) from None

    def _find_latest(
        self, matches: Callable[[NamedVersion], bool]
    ) -> tuple[NamedVersion, Artifact] | None:
        for version in sorted(self.versions(), key=lambda v: v.created, reverse=True):
            if matches(version):
                with contextlib.suppress(ArtifactError):
                    return version, self.load(version.artifact)
        return None

    def _prepare_folders(self) -> None:
        for name in ("blobs", "artifacts", "names", "partial", "leases"):
            make_private_folder(self.root / name)

    def _find_damaged_blobs(self, folder: Path, files: tuple[FileEntry, ...]) -> set[str]:
        """The checksums of `files` whose blobs exist but are damaged."""
        damaged = set()
        for entry in files:
            blob = self.root / "blobs" / entry.sha256
            with contextlib.suppress(FileNotFoundError):
                if not blob.samefile(folder / entry.path) and try_hash(blob) != entry.sha256:
                    damaged.add(entry.sha256)
        return damaged

    def _keep_blobs(self, folder: Path, files: tuple[FileEntry, ...], damaged: set[str]) -> None:
        """Make a blob of every file in `folder`; needs the lock."""
        for entry in files:
            blob = self.root / "blobs" / entry.sha256
            if entry.sha256 in damaged or not blob.exists():
                # A link, not a move: the stage stays complete until the model is published.
                link_file(folder / entry.path, blob)

    def _publish(self, artifact: Artifact) -> None:
        final = self.folder_of(artifact.id)
        if final.exists():
            self._repair(artifact)
            return
        building = final.with_name(f".{artifact.id}-{os.getpid()}")
        remove_tree(building)
        for entry in artifact.files:
            target = building / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.root / "blobs" / entry.sha256, target)
        write_atomically(building / _NOTE, msgspec.json.format(msgspec.json.encode(artifact)))
        os.rename(building, final)
        sync(final.parent)

    def _repair(self, artifact: Artifact) -> None:
        """Restore missing and damaged files of a model that is already stored."""
        folder = self.folder_of(artifact.id)
        for entry in artifact.files:
            blob, target = self.root / "blobs" / entry.sha256, folder / entry.path
            if not target.exists() or not target.samefile(blob):
                target.parent.mkdir(parents=True, exist_ok=True)
                link_file(blob, target)
        with contextlib.suppress(ArtifactError):
            if self.load(artifact.id).files == artifact.files:
                return
        write_atomically(folder / _NOTE, msgspec.json.format(msgspec.json.encode(artifact)))

    def _discard(self, folder: Path) -> None:
        """Remove an artifact; rename it first, so that a kill leaves no visible part of it."""
        hidden = folder.with_name(f".{folder.name}-removed")
        os.rename(folder, hidden)
        remove_tree(hidden)
        for kept in ("leases", "figures"):
            for left in (self.root / kept).glob(f"{folder.name}*"):
                left.unlink(missing_ok=True)

    def _name(self, name: str, artifact_id: str, lineage: Lineage) -> NamedVersion:
        versions = self._read_versions(name)
        for version in versions:
            if version.artifact == artifact_id and version.lineage == lineage:
                return version
        number = read_name(self._path_of_name(name)).highest + 1
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        version = NamedVersion(name, number, artifact_id, created, lineage)
        self._write_versions(name, [*versions, version])
        return version

    def _path_of_name(self, name: str) -> Path:
        return self.root / "names" / f"{name}.json"

    def _read_versions(self, name: str) -> list[NamedVersion]:
        return read_name(self._path_of_name(name)).versions

    def _write_versions(self, name: str, versions: list[NamedVersion]) -> None:
        path = self._path_of_name(name)
        numbers = (read_name(path).highest, *(one.version for one in versions))
        write_name(path, Versions(max(numbers), versions))

    def _in_use(self, artifact_id: str) -> bool:
        path = self.root / "leases" / artifact_id
        if not path.exists():
            return False
        with try_lock_file(path) as free:
            return not free

    def _remove_stale_partials(self) -> None:
        partial = self.root / "partial"
        for name in sorted({path.name.removesuffix(".lock") for path in partial.iterdir()}):
            folder, lock = partial / name, partial / f"{name}.lock"
            with try_lock_file(lock) as free:
                if free and _is_stale(folder):
                    remove_tree(folder)
                    lock.unlink(missing_ok=True)

    def _remove_stale_temporaries(self) -> None:
        for name in ("names", "leases", "figures"):
            for path in (self.root / name).glob(".*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > STALE_TEMPORARY_S:
                        path.unlink()

    def _size(self) -> int:
        return sum(blob.stat().st_size for blob in (self.root / "blobs").iterdir())


def _is_stale(folder: Path) -> bool:
    """Whether a partial folder is empty or was not touched for long."""
    if not folder.is_dir():
        return True
    times = [path.lstat().st_mtime for path in folder.rglob("*")]
    return not times or time.time() - max(times) > STALE_PARTIAL_S


def _read_files(folder: Path, on_progress: OnProgress) -> tuple[FileEntry, ...]:
    """Hash the files in `folder`, sync them and make them read-only."""
    # A folder from another store contains that store's note; this store writes its own.
    note = folder / _NOTE
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p != note)
    total = sum(path.stat().st_size for path in paths)
    done = 0
    entries = []
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        path.chmod(0o444)
        entries.append(FileEntry(path.relative_to(folder).as_posix(), checksum, size))
        done += size
        on_progress(Progress("store", done, total))
    return tuple(entries)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
    return value if isinstance(value, dict) else {}
