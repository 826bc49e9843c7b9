"""The artifact store: content-addressed, checked, atomic.

    blobs/<sha256>              one file's bytes, read-only
    artifacts/<id>/             a model: hard links to blobs, and artifact.json
    names/<name>.json           its versions, v1, v2, ...
    partial/<key>/              downloads and conversions under way; they resume from here
    leases/<id>                 held (flock) by whoever serves the model

A model is built beside, synced and renamed: it is there whole or not at all. A process that is
killed leaves a `partial/` folder that the next try continues, and at worst some blobs that
`collect_garbage` removes. Names are small JSON files, replaced whole. Nothing here needs the
database.
"""

from __future__ import annotations

import contextlib
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

from thrifty import __version__
from thrifty.artifacts.artifact import (
    Artifact,
    FileEntry,
    Lineage,
    NamedVersion,
    compute_id,
    parse_label,
)
from thrifty.artifacts.inspect import inspect_model
from thrifty.errors import ArtifactError, IntegrityError
from thrifty.home import make_private_folder
from thrifty.types import OnProgress, Progress, ignore_progress
from thrifty.units import format_bytes

READ_BYTES = 4 * 1024 * 1024
STALE_PARTIAL_S = 7 * 86400.0
"""A partial download that nobody has continued for this long is garbage."""
_NOTE = "artifact.json"


@dataclass(frozen=True)
class Collected:
    """What a garbage collection removed."""

    artifacts: tuple[str, ...]
    freed_bytes: int
    kept_in_use: tuple[str, ...]


class Store:
    """The models below one folder. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # finding

    def versions(self) -> list[NamedVersion]:
        """Every named version, by name and then version."""
        folder = self.root / "names"
        found: list[NamedVersion] = []
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            found += self._read_versions(path.stem)
        return found

    def find(self, label: str) -> tuple[NamedVersion, Artifact]:
        """The version that `name` (its latest) or `name@vN` means. Raises `ArtifactError`."""
        name, number = parse_label(label)
        versions = self._read_versions(name)
        if not versions:
            known = sorted({version.name for version in self.versions()})
            hint = f"stored here: {', '.join(known)}" if known else "nothing is stored yet"
            raise ArtifactError(
                f"no model is named {name!r}; {hint}. To fetch one: thrifty pull MODEL"
            )
        for version in reversed(versions):
            if number is None or version.version == number:
                return version, self.load(version.artifact)
        labels = ", ".join(version.label for version in versions)
        raise ArtifactError(f"{label!r} does not exist; there are {labels}")

    def has_name(self, name: str) -> bool:
        """Whether any version has this name."""
        return bool(self._read_versions(name))

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
        """Where an artifact's files lie. Read-only."""
        return self.root / "artifacts" / artifact_id

    def find_requested(self, requested: str) -> tuple[NamedVersion, Artifact] | None:
        """The latest version that was fetched for the source `requested`, if there is one."""
        return self._find_latest(lambda version: version.lineage.requested == requested)

    def find_made(
        self, parent_id: str, recipe: dict[str, Any]
    ) -> tuple[NamedVersion, Artifact] | None:
        """The latest version that `recipe` made from the artifact `parent_id`, if there is one."""
        return self._find_latest(
            lambda version: (
                version.lineage.recipe == recipe
                and any(parent.id == parent_id for parent in version.lineage.parents)
            )
        )

    # adding

    @contextlib.contextmanager
    def stage(self, key: str) -> Iterator[Path]:
        """A folder to build in, the same for the same `key`, and locked against other processes.

        It stays when the block raises, so that the next try finds what is there already; `add`
        empties it.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        folder = make_private_folder(self.root / "partial" / digest)
        with _lock(self.root / "partial" / f"{digest}.lock"):
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
        """Move the model in `folder` into the store and give it the next version of `name`.

        The same bytes with the same lineage under the same name are the same version. Raises
        `FormatRefused` for what is not loaded, and `IntegrityError` for damaged files; `folder`
        is then left alone.
        """
        parse_label(name)
        description = inspect_model(folder)
        self._prepare_folders()
        files = self._take_files(folder, on_progress)
        artifact = Artifact(compute_id(files), description, files)
        lineage = msgspec.structs.replace(lineage, made_by=f"thrifty {__version__}")
        with _lock(self.root / "store.lock"):
            self._publish(artifact)
            version = self._name(name, artifact.id, lineage)
        shutil.rmtree(folder, ignore_errors=True)
        return version, artifact

    def require_space(self, needed_bytes: int, what: str) -> None:
        """Raise `ArtifactError` unless the disk has room for `needed_bytes` and a little more."""
        make_private_folder(self.root)
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes + 64_000_000:
            raise ArtifactError(
                f"{what} needs {format_bytes(needed_bytes)}, and {self.root} has "
                f"{format_bytes(free)} free; make room (thrifty models gc) or set THRIFTY_HOME "
                "to a larger disk"
            )

    # keeping

    def verify(
        self,
        artifact: Artifact,
        *,
        thorough: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        """Raise `IntegrityError` unless every file is what it was when it was stored.

        A file whose size, time and inode are as they were at the last check is taken as unchanged;
        `thorough` reads every byte.
        """
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
                    f"{path} is missing; remove the model (thrifty models rm) and fetch it again"
                ) from None
            stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
            if status.st_size != entry.size or (
                (thorough or stamps.get(entry.path) != stamp) and _hash(path) != entry.sha256
            ):
                raise IntegrityError(
                    f"{path} is damaged: its checksum is not the one it was stored with; remove "
                    "the model (thrifty models rm) and fetch it again"
                )
            fresh[entry.path] = stamp
            done += entry.size
            on_progress(Progress("check", done, total))
        if fresh != stamps:
            make_private_folder(stamps_path.parent)
            _write_atomically(stamps_path, msgspec.json.encode(fresh))

    def lease(self, artifact_id: str) -> int:
        """Hold an artifact against removal; returns a file descriptor that a child may inherit.

        The hold ends when every copy of the descriptor is closed, however its holders end.
        """
        make_private_folder(self.root / "leases")
        descriptor = os.open(self.root / "leases" / artifact_id, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def remove(self, label: str) -> NamedVersion:
        """Take the name off one version (`name@vN`); its bytes go with the next collection."""
        name, number = parse_label(label)
        if number is None:
            raise ArtifactError(f"say which version to remove, such as {name}@v1")
        with _lock(self.root / "store.lock"):
            versions = self._read_versions(name)
            gone = [version for version in versions if version.version == number]
            if not gone:
                raise ArtifactError(f"{label!r} does not exist")
            if self._in_use(gone[0].artifact):
                raise ArtifactError(f"{label!r} is being served; stop it first (thrifty down)")
            self._write_versions(name, [v for v in versions if v.version != number])
        return gone[0]

    def collect_garbage(self, protected: frozenset[str] = frozenset()) -> Collected:
        """Remove what no name, no server and no child in the lineage needs.

        `protected` holds ids that must stay whatever happens, such as those of deployments that
        are scaled down.
        """
        self._prepare_folders()
        with _lock(self.root / "store.lock"):
            before = self._size()
            named = {version.artifact for version in self.versions()}
            removed, in_use = [], []
            for folder in sorted((self.root / "artifacts").iterdir()):
                if folder.name.startswith("."):
                    shutil.rmtree(folder, ignore_errors=True)
                elif folder.name in named or folder.name in protected:
                    continue
                elif self._in_use(folder.name):
                    in_use.append(folder.name)
                else:
                    _remove_tree(folder)
                    removed.append(folder.name)
                    for left in (self.root / "leases").glob(f"{folder.name}*"):
                        left.unlink(missing_ok=True)
            for blob in (self.root / "blobs").iterdir():
                if blob.stat().st_nlink == 1:
                    blob.unlink()
            self._remove_stale_partials()
            return Collected(tuple(removed), max(0, before - self._size()), tuple(in_use))

    # private

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

    def _take_files(self, folder: Path, on_progress: OnProgress) -> tuple[FileEntry, ...]:
        """Move every file below `folder` to its blob; return what they are."""
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        total = sum(path.stat().st_size for path in paths)
        done = 0
        entries = []
        for path in paths:
            size = path.stat().st_size
            checksum = _hash(path)
            blob = self.root / "blobs" / checksum
            if not blob.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                # A link, not a move: the staging folder stays whole until the model is published.
                os.chmod(path, 0o444)
                with contextlib.suppress(FileExistsError):
                    os.link(path, blob)
            entries.append(FileEntry(path.relative_to(folder).as_posix(), checksum, size))
            done += size
            on_progress(Progress("store", done, total))
        return tuple(entries)

    def _publish(self, artifact: Artifact) -> None:
        final = self.folder_of(artifact.id)
        if final.exists():
            return
        building = final.with_name(f".{artifact.id}-{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)
        for entry in artifact.files:
            target = building / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.root / "blobs" / entry.sha256, target)
        _write_atomically(building / _NOTE, msgspec.json.format(msgspec.json.encode(artifact)))
        os.rename(building, final)
        _sync_folder(final.parent)

    def _name(self, name: str, artifact_id: str, lineage: Lineage) -> NamedVersion:
        versions = self._read_versions(name)
        for version in versions:
            if version.artifact == artifact_id and version.lineage == lineage:
                return version
        number = max((version.version for version in versions), default=0) + 1
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        version = NamedVersion(name, number, artifact_id, created, lineage)
        self._write_versions(name, [*versions, version])
        return version

    def _read_versions(self, name: str) -> list[NamedVersion]:
        path = self.root / "names" / f"{name}.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[NamedVersion])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            raise IntegrityError(f"{path} is damaged: {error}") from None

    def _write_versions(self, name: str, versions: list[NamedVersion]) -> None:
        path = self.root / "names" / f"{name}.json"
        if versions:
            _write_atomically(path, msgspec.json.format(msgspec.json.encode(versions)))
        else:
            path.unlink(missing_ok=True)

    def _in_use(self, artifact_id: str) -> bool:
        path = self.root / "leases" / artifact_id
        if not path.exists():
            return False
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _remove_stale_partials(self) -> None:
        for folder in (self.root / "partial").iterdir():
            if not folder.is_dir():
                continue
            newest = max((p.stat().st_mtime for p in folder.rglob("*")), default=0.0)
            if time.time() - newest > STALE_PARTIAL_S:
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)

    def _size(self) -> int:
        return sum(blob.stat().st_size for blob in (self.root / "blobs").iterdir())


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    make_private_folder(path.parent)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
