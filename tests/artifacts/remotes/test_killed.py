"""Pushes and pulls that are killed, and disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artifacts.remotes.places import FolderPlace
from tests.artifacts.stored import put
from thrifty.artifacts import Store
from thrifty.artifacts.remotes import folder, pull, push
from thrifty.errors import ArtifactError, RemoteError

KILLED = """
import os, signal, sys
from pathlib import Path
from thrifty.artifacts import Store
from thrifty.artifacts.remotes import pull, push

def die(progress):
    if progress.step == sys.argv[1] and progress.done > progress.total * 0.7:
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(Path(sys.argv[2]))
if sys.argv[1] == "upload":
    push(store, "tiny", sys.argv[3], on_progress=die)
else:
    pull(store, sys.argv[3] + "/tiny", on_progress=die)
"""


def run_killed(step: str, store: Store, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(store.root), url], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_push_and_pull(store: Store, other: Store, tmp_path: Path) -> None:
    """What is there afterwards is a remote without the model, and a store without it; both go on."""
    _, artifact = put(store, size=4_000_000)
    place = FolderPlace(tmp_path / "remote")
    run_killed("upload", store, place.url)
    with pytest.raises(RemoteError):
        pull(other, place.reference("tiny"))
    assert push(store, "tiny", place.url).created
    run_killed("download", other, place.url)
    assert not other.versions()
    pulled = pull(other, place.reference("tiny"))
    assert pulled.moved_bytes < artifact.size_bytes / 2
    assert pulled.artifact == artifact
    other.verify(artifact, thorough=True)


def test_leavings_of_killed_pushes_go(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    place = FolderPlace(tmp_path / "remote")
    left = place.root / "blobs" / "sha256" / ".abc-1-2"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"part")
    monkeypatch.setattr(folder, "STALE_S", -1.0)
    push(store, "tiny", place.url)
    assert not left.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_folder(
    store: Store, other: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """No room, or no quota: the error says so, nothing is left, and the push goes on later."""
    put(store)
    place = FolderPlace(tmp_path / "remote")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(RemoteError, match=r"is full: .* free some space there"):
            push(store, "tiny", place.url)
    assert not [path for path in place.root.rglob("*") if path.is_file()]
    push(store, "tiny", place.url)
    assert pull(other, place.reference("tiny")).version.label == "tiny@v1"


def test_the_disk_is_full_while_pulling(
    store: Store, other: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    place = FolderPlace(tmp_path / "remote")
    push(store, "tiny", place.url)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ArtifactError, match="free some space"):
        pull(other, place.reference("tiny"))
