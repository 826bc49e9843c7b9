"""The image, built with buildah and run with it. There is no container engine in that: the command is
started in the image's root with `chroot`, on the host's network, without limits.

The base is Debian by debootstrap, because registries may be out of reach; `THRIFTY_TEST_BASE` names an
image to take instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parents[2]
USER_ID = 10001
SHARED = ("/etc/pip.conf", "/etc/ssl/certs")
"""What pip needs of this machine to reach its index."""
PACKAGES = "python3,python3-venv,ca-certificates,python-is-python3"
BASE_FILE = """FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""


class Buildah:
    """Storage of its own, in which layers are plain copies."""

    def __init__(self, folder: Path) -> None:
        self.command = [
            "buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run"),
            "--storage-driver", "vfs",
        ]  # fmt: skip

    def __call__(self, *arguments: str, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
        )
        assert done.returncode == 0, arguments
        return done.stdout.strip()

    def start(
        self, container: str, home: Path, log: BinaryIO, variables: dict[str, str], *arguments: str
    ) -> subprocess.Popen[bytes]:
        """Begin to run `thrifty` with these arguments in a container, as its user, on `home`."""
        given = {**variables, "THRIFTY_HOME": "/srv/thrifty"}
        # buildah puts an empty folder over a volume of the image, so that the home is elsewhere.
        command = [
            *self.command, "run", "--isolation", "chroot", "--user", f"{USER_ID}:{USER_ID}",
            *(part for key, value in given.items() for part in ("--env", f"{key}={value}")),
            "--volume", f"{home}:/srv/thrifty", *share_with_image(), container, "--", "thrifty",
            *arguments,
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def find_obstacle() -> str | None:
    """Why no image can be built here."""
    missing = [one for one in ("buildah", "debootstrap") if shutil.which(one) is None]
    if not missing and os.getuid() == 0:
        return None
    return (
        "NO IMAGE IS BUILT HERE: it takes root, and apt-get install buildah debootstrap (missing: "
        f"{', '.join(missing) or 'root'})"
    )


def share_with_image() -> list[str]:
    """The options that let a build or a run use what pip needs."""
    return [p for one in SHARED if Path(one).exists() for p in ("--volume", f"{one}:{one}:ro")]


def build_base(buildah: Buildah, folder: Path) -> str:
    """An image with Python on Debian; its name."""
    named = os.environ.get("THRIFTY_TEST_BASE")
    if named:
        return named
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder / "root")],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    context = folder / "context"
    context.mkdir()
    left_out = [f"--exclude=./var/{one}/*" for one in ("cache/apt/archives", "lib/apt/lists")]
    subprocess.run(
        ["tar", "-C", str(folder / "root"), "-cf", str(context / "base.tar"), *left_out, "."],
        check=True,
    )
    shutil.rmtree(folder / "root")
    (context / "Containerfile").write_text(BASE_FILE)
    buildah("bud", "--isolation", "chroot", "-t", "localhost/base:1", str(context))
    return "localhost/base:1"


def build_image(buildah: Buildah, base: str) -> str:
    """Our image; its name."""
    buildah(
        "bud", "--isolation", "chroot", "--build-arg", f"BASE={base}", *share_with_image(), "-f",
        "deploy/Containerfile", "-t", "localhost/thrifty:1", ".",
    )  # fmt: skip
    return "localhost/thrifty:1"


def measure_packed(buildah: Buildah, image: str, folder: Path) -> int:
    """The bytes of the image as registries hold it."""
    buildah("push", image, f"oci:{folder}/layout:1")
    return sum(path.stat().st_size for path in (folder / "layout").rglob("*") if path.is_file())


def measure_unpacked(buildah: Buildah, container: str) -> int:
    """The bytes of the files in a container's root."""
    root = buildah("mount", container)
    try:
        done = subprocess.run(
            ["du", "-s", "--block-size=1", "--apparent-size", "--one-file-system", root],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        buildah("umount", container)
    return int(done.stdout.split()[0])


def give_to_user(home: Path) -> None:
    """Let the image's user own a home, as a volume of its own would be."""
    for path in (home, *home.rglob("*")):
        os.chown(path, USER_ID, USER_ID, follow_symlinks=False)
