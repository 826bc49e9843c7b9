"""A real Kubernetes control plane from Debian's packages: etcd's binary, and the API server, the
controller manager and the scheduler built from Debian's source package.

    python -m tests.cluster.binaries        build them, once for each machine (7 minutes, 2.5 GB meanwhile)

Nothing of the system changes: apt works with lists and sources of its own below the cache folder, and
packages are unpacked there instead of installed. The binaries (0.3 GB) stay in
`~/.cache/thrifty-tests/kubernetes-1.20.2/bin`, or in the folder that `THRIFTY_TEST_KUBERNETES` names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "1.20.2"
FOLDER_VARIABLE = "THRIFTY_TEST_KUBERNETES"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
NAMES = ("etcd", *COMPONENTS)
_SUITE = "bookworm"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PACKAGES = (
    "golang-1.19-go", "golang-1.19-src", "etcd-server", "golang-github-modern-go-reflect2-dev",
    "rsync", "libpopt0", "libxxhash0", "jq", "libjq1", "libonig5",
)  # fmt: skip
"""What is unpacked: the compiler, etcd, a library that replaces a vendored one, and what the build calls."""


class NoBinaries(Exception):
    """They are not there, or cannot be built here; the message says why and what to do."""


def find_binaries() -> Path:
    """The folder with all of `NAMES`. Raises `NoBinaries`."""
    folder = _root() / "bin"
    missing = [name for name in NAMES if not os.access(folder / name, os.X_OK)]
    if missing:
        raise NoBinaries(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {folder}; build "
            "with `python -m tests.cluster.binaries` (7 minutes, once for each machine)"
        )
    return folder


def build_binaries() -> Path:
    """Build what is not there yet; returns the folder. Raises `NoBinaries`."""
    try:
        return find_binaries()
    except NoBinaries:
        pass
    _check_machine()
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    _download(root)
    source = _unpack(root)
    _compile(root, source)
    folder = root / "bin"
    folder.mkdir(exist_ok=True)
    for name in COMPONENTS:
        _install(source / "_output/local/bin/linux/amd64" / name, folder / name)
    _install(root / "packages/usr/bin/etcd", folder / "etcd")
    for scratch in ("source", "packages", "downloads", "apt", "home"):
        # Go writes its module cache read-only.
        subprocess.run(["chmod", "-R", "u+w", str(root / scratch)], check=False)
        shutil.rmtree(root / scratch, ignore_errors=True)
    return find_binaries()


def _root() -> Path:
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    return Path.home() / ".cache" / "thrifty-tests" / f"kubernetes-{VERSION}"


def _check_machine() -> None:
    release = Path("/etc/os-release")
    text = release.read_text() if release.exists() else ""
    if f"VERSION_CODENAME={_SUITE}" not in text or os.uname().machine != "x86_64":
        raise NoBinaries(
            f"the control plane is built from Debian {_SUITE}'s source package, on x86-64; elsewhere, "
            f"put {', '.join(NAMES)} of Kubernetes {VERSION} or newer below a folder's bin/ and name "
            f"the folder in {FOLDER_VARIABLE}"
        )
    for tool in ("apt-get", "dpkg", "make", "tar"):
        if shutil.which(tool) is None:
            raise NoBinaries(f"the build needs {tool}")


def _download(root: Path) -> None:
    apt, downloads = root / "apt", root / "downloads"
    for folder in (apt / "lists/partial", apt / "cache/archives/partial", apt / "parts", downloads):
        folder.mkdir(parents=True, exist_ok=True)
    source = f"[signed-by={_KEYRING}] http://deb.debian.org/debian {_SUITE} main"
    (apt / "sources.list").write_text(f"deb {source}\ndeb-src {source}\n")
    (apt / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{apt}/sources.list";\nDir::Etc::sourceparts "{apt}/parts";\n'
        f'Dir::State::lists "{apt}/lists";\nDir::Cache "{apt}/cache";\n'
        'APT::Sandbox::User "";\nAcquire::Retries "3";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    if not list(downloads.glob("kubernetes_*.orig.tar.gz")):
        _run(["apt-get", "update", "-q"], downloads, environment)
        _run(["apt-get", "source", "-q", "--download-only", "kubernetes"], downloads, environment)
    if len(list(downloads.glob("*.deb"))) < len(_PACKAGES):
        _run(["apt-get", "download", "-q", *_PACKAGES], downloads, environment)


def _unpack(root: Path) -> Path:
    packages, source, downloads = root / "packages", root / "source", root / "downloads"
    if not (packages / "usr/bin/etcd").exists():
        for package in sorted(downloads.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(packages)], root)
    if not (source / "vendor/.patched").exists():
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        (archive,) = downloads.glob("kubernetes_*.orig.tar.gz")
        _run(["tar", "xzf", str(archive), "--strip-components=1", "-C", str(source)], root)
        # reflect2 1.0.1 crashes with Go 1.18 and newer on the first custom resource that is written.
        vendored = source / "vendor/github.com/modern-go/reflect2"
        shutil.rmtree(vendored)
        shutil.copytree(
            packages / "usr/share/gocode/src/github.com/modern-go/reflect2", vendored,
            ignore=shutil.ignore_patterns("*_test.go"),
        )  # fmt: skip
        (source / "vendor/.patched").touch()
    return source


def _compile(root: Path, source: Path) -> None:
    packages = root / "packages"
    go = packages / "usr/lib/go-1.19"
    workspace = source / ".go/src/k8s.io"
    workspace.mkdir(parents=True, exist_ok=True)
    link = workspace / "kubernetes"
    if not link.is_symlink():
        link.symlink_to("../../..")
    (root / "home").mkdir(exist_ok=True)
    libraries = f"{packages}/usr/lib/x86_64-linux-gnu:{packages}/lib/x86_64-linux-gnu"
    environment = {
        "PATH": f"{go}/bin:{packages}/usr/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": libraries, "HOME": str(root / "home"), "GOROOT": str(go),
        "GOPATH": str(source / ".go"), "GOPROXY": "off", "CGO_ENABLED": "0",
        "KUBE_GIT_VERSION": f"v{VERSION}", "KUBE_GIT_COMMIT": "debian",
        "KUBE_GIT_TREE_STATE": "clean", "KUBE_GIT_MAJOR": "1", "KUBE_GIT_MINOR": "20",
    }  # fmt: skip
    # As Debian's rules do: `make`, which generates files that the archive lacks, and no Go modules.
    targets = " ".join(f"cmd/{name}" for name in COMPONENTS)
    _run(["nice", "-n", "19", "make", f"WHAT={targets}"], source, environment)


def _install(source: Path, target: Path) -> None:
    temporary = target.with_suffix(".new")
    shutil.copy2(source, temporary)
    temporary.chmod(0o755)
    os.replace(temporary, target)


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=folder, env=environment)
    if done.returncode:
        raise NoBinaries(f"`{' '.join(command)}` ended with status {done.returncode}")


if __name__ == "__main__":
    try:
        print(build_binaries())
    except NoBinaries as error:
        sys.exit(f"Error: {error}")
