"""Environments of their own for engines whose packages the light install does not have.

An engine names its packages, all pinned, as the text of a pip requirements file. `install` makes a
virtual environment for them below the home:

    engines/<name>/<key>/              a virtual environment
    engines/<name>/<key>/installed.json   written last: without it the folder counts for nothing
    engines/<name>/wheels/             downloads in progress, which the next attempt resumes
    engines/<name>.lock                held (flock) by whoever installs

The key depends on the packages, the version of Python and the platform: a new version of Thrifty
that pins other packages makes another environment, and what runs in the old one goes on. pip
resolves, so that its settings (mirrors, proxies, pins) apply; the wheels are downloaded here with
byte ranges, so that a killed download resumes, and checked against the index's checksums. Only
wheels are accepted: building a source package would run its code.

    packages = EnginePackages("llamacpp", REQUIREMENTS, imports="xllamacpp", ...)
    environment = Environment(packages, find_home())
    if not environment.installed:
        environment.install(on_progress)
    command = [str(environment.python), ...]
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from thrifty.artifacts import Store
from thrifty.artifacts.disk import lock_file
from thrifty.artifacts.look_only import LookOnlyStore, NotMadeYet
from thrifty.artifacts.sources.download import download
from thrifty.errors import EngineError, ThriftyError
from thrifty.files import write_atomically
from thrifty.home import Home, make_private_folder
from thrifty.types import OnProgress, Progress
from thrifty.units import format_bytes

NOTE = "installed.json"
RESOLVE_TIMEOUT_S = 600.0
CHECK_TIMEOUT_S = 300.0
POLL_S = 0.5
"""How often the size of what pip has unpacked is looked at."""


@dataclass(frozen=True)
class EnginePackages:
    """The packages of an engine's environment."""

    name: str
    """The engine's name."""
    requirements: str
    """A pip requirements file in which every package is pinned; hashes are enforced if given."""
    imports: str
    """The module whose import shows that the environment works on this machine."""
    download_bytes: int
    """About so much is downloaded. Users are told before."""
    installed_bytes: int
    """About so much disk it takes."""
    complete: bool = False
    """Whether the requirements name every package, so that none is added for what they ask for."""
    further_index: str | None = None
    """An index to ask as well where pip's own ones do not have a pinned version."""


@dataclass(frozen=True)
class Installed:
    """An environment that is there, as its note says."""

    packages: dict[str, str]
    """Versions by name."""
    size_bytes: int


class Environment:
    """The environment of one engine in one home; it may not exist yet."""

    def __init__(self, packages: EnginePackages, home: Home) -> None:
        self.packages = packages
        self._home = home
        self._root = home.root / "engines" / packages.name
        self.folder = self._root / _make_key(packages.requirements)
        """Where it is, or will be."""

    @property
    def python(self) -> Path:
        """Its interpreter. Run modules with `-m`: console scripts need not exist."""
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether it is complete."""
        return (self.folder / NOTE).exists() and self.python.exists()

    def describe(self) -> Installed | None:
        """What is installed; None if nothing is, or not completely."""
        if not self.installed:
            return None
        try:
            note: dict[str, Any] = json.loads((self.folder / NOTE).read_text())
            return Installed(dict(note["packages"]), int(note["size_bytes"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def say_size(self) -> str:
        """What an installation takes, in words."""
        return (
            f"about {format_bytes(self.packages.download_bytes)} to download and "
            f"{format_bytes(self.packages.installed_bytes)} of disk"
        )

    def install(self, on_progress: OnProgress) -> Installed:
        """Make the environment, unless it is there. Blocks, also while another process makes it.

        Raises `EngineError` with the next step; what was downloaded so far is kept, and the next
        attempt resumes from there.
        """
        with lock_file(self._root.with_name(f"{self.packages.name}.lock")):
            there = self.describe()
            if there is not None:
                return there
            try:
                return self._install(on_progress)
            except EngineError:
                raise
            except ThriftyError as error:
                raise EngineError(f"the engine {self.packages.name!r}: {error}") from None
            except OSError as error:
                raise EngineError(
                    f"the engine {self.packages.name!r} cannot be installed in {self.folder}: "
                    f"{error.strerror or error}"
                ) from None

    def install_for(self, store: Store, on_progress: OnProgress) -> None:
        """Install it before a model of `store` is prepared, unless it is there. A store that is only
        looked at gets nothing installed: that raises `NotMadeYet`. Raises `EngineError`.
        """
        if self.installed:
            return
        if isinstance(store, LookOnlyStore):
            raise NotMadeYet(self.packages.installed_bytes)
        self.install(on_progress)

    def remove(self) -> None:
        """Remove it, downloads included. Replicas that run in it fail when they restart."""
        with lock_file(self._root.with_name(f"{self.packages.name}.lock")):
            (self.folder / NOTE).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self._root / "wheels", ignore_errors=True)

    def _install(self, on_progress: OnProgress) -> Installed:
        store = Store(self._home.models)
        needed = self.packages.download_bytes + self.packages.installed_bytes
        store.require_space(needed, f"the engine {self.packages.name!r}")
        shutil.rmtree(self.folder, ignore_errors=True)  # a half-made one
        wheels = make_private_folder(self._root / "wheels")
        on_progress(Progress("resolve_packages", 0, 0))
        found = self._resolve(wheels)
        paths = self._download(found, wheels, store, on_progress)
        self._make(paths, on_progress)
        self._check()
        note = Installed({each.name: each.version for each in found}, _measure_folder(self.folder))
        text = json.dumps({"packages": note.packages, "size_bytes": note.size_bytes}, indent=1)
        write_atomically(self.folder / NOTE, text + "\n")
        shutil.rmtree(wheels, ignore_errors=True)
        return note

    def _resolve(self, wheels: Path) -> list[_Wheel]:
        listed = wheels / "requirements.txt"
        listed.write_text(self.packages.requirements)
        command = ["install", "--dry-run", "--ignore-installed", "--only-binary", ":all:",
                   "--quiet", "--report", "-", "--requirement", str(listed)]  # fmt: skip
        if self.packages.complete:
            command.append("--no-deps")
        further = self.packages.further_index
        try:
            result = _run_pip(command, RESOLVE_TIMEOUT_S)
            if result.returncode and further is not None and "No matching" in result.stderr:
                command += ["--extra-index-url", further]
                result = _run_pip(command, RESOLVE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"pip did not find the packages of the engine {self.packages.name!r} within "
                f"{RESOLVE_TIMEOUT_S:.0f} s; check the network and try again"
            ) from None
        if result.returncode:
            raise EngineError(
                f"the engine {self.packages.name!r} is not installed, and pip cannot find its "
                f"packages for {platform.system()} on {platform.machine()} with Python "
                f"{platform.python_version()}: {_find_reason(result.stderr)}. Check the network "
                "and pip's index settings (python -m pip config list), or name a folder with the "
                "wheels in PIP_FIND_LINKS, and try again"
            )
        return [_read_item(item) for item in json.loads(result.stdout)["install"]]

    def _download(
        self, found: Sequence[_Wheel], wheels: Path, store: Store, on_progress: OnProgress
    ) -> list[Path]:
        paths = []
        before = 0
        for wheel in found:
            path = wheels / wheel.file_name
            parts = urlsplit(wheel.url)
            if parts.scheme == "file":
                shutil.copyfile(url2pathname(parts.path), path)
            else:
                download(
                    wheel.url, path, sha256=wheel.sha256, store=store,
                    on_progress=_add_to(before, self.packages.download_bytes, on_progress),
                )  # fmt: skip
            before += path.stat().st_size
            paths.append(path)
        return paths

    def _make(self, paths: Sequence[Path], on_progress: OnProgress) -> None:
        on_progress(Progress("install", 0, 0))
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(self.folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise EngineError(
                f"Python cannot make a virtual environment in {self.folder}: "
                f"{_find_reason(made.stderr or made.stdout)}. On Debian: apt install python3-venv"
            )
        total = sum(map(_measure_wheel, paths))
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(POLL_S):
                on_progress(Progress("install", min(_measure_folder(self.folder), total), total))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            result = _run_pip(
                ["--python", str(self.python), "install", "--no-index", "--no-deps", "--quiet",
                 "--no-compile", *map(str, paths)], None,
            )  # fmt: skip
        finally:
            ended.set()
            watcher.join()
        if result.returncode:
            for path in paths:  # which may be damaged
                path.unlink(missing_ok=True)
            raise EngineError(
                f"pip cannot install the engine {self.packages.name!r}: "
                f"{_find_reason(result.stderr)}; try again"
            )
        on_progress(Progress("install", total, total))

    def _check(self) -> None:
        """Import it once, in a process of its own: a library may end the process."""
        try:
            result = subprocess.run(
                [str(self.python), "-c", f"import {self.packages.imports}"],
                capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            reason = f"importing it takes more than {CHECK_TIMEOUT_S:.0f} s"
        else:
            if not result.returncode:
                return
            reason = _find_reason(result.stderr)
            if result.returncode < 0:
                reason = (
                    f"it ends with signal {-result.returncode}; this processor may lack "
                    "instructions that it needs"
                )
        raise EngineError(
            f"the engine {self.packages.name!r} was installed and does not run on this machine: "
            f"{reason}"
        )


@dataclass(frozen=True)
class _Wheel:
    """One package, as pip resolved it."""

    name: str
    version: str
    url: str
    sha256: str | None

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


def _read_item(item: dict[str, Any]) -> _Wheel:
    """One entry of pip's report. Raises `EngineError`."""
    info, metadata = item["download_info"], item["metadata"]
    wheel = _Wheel(
        str(metadata["name"]), str(metadata["version"]), str(info["url"]),
        info.get("archive_info", {}).get("hashes", {}).get("sha256"),
    )  # fmt: skip
    if not wheel.file_name.endswith(".whl") or "/" in wheel.file_name:
        raise EngineError(f"pip resolved {wheel.name} to {wheel.url}, which is no wheel")
    return wheel


def _make_key(requirements: str) -> str:
    here = [requirements, sys.implementation.cache_tag or "", platform.system(), platform.machine()]
    return hashlib.sha256("\n".join(here).encode()).hexdigest()[:12]


def _run_pip(arguments: Sequence[str], timeout_s: float | None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "pip", "--no-color", "--disable-pip-version-check", "--no-input",
        *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def _find_reason(text: str) -> str:
    """The last error in what a tool wrote."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    last = (errors or lines or ["it gives no reason"])[-1]
    return last.removeprefix("ERROR: ").rstrip(".")[:500]


def _add_to(before: int, expected: int, on_progress: OnProgress) -> OnProgress:
    """Tell of one download as a part of all: `before` bytes came before it."""

    def tell(step: Progress) -> None:
        total = max(expected, before + step.total)
        on_progress(Progress(step.step, before + step.done, total))

    return tell


def _measure_wheel(path: Path) -> int:
    """The size of a wheel's files. Raises `EngineError` where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(info.file_size for info in archive.infolist())
    except zipfile.BadZipFile:
        path.unlink(missing_ok=True)
        raise EngineError(f"{path.name} arrived damaged and was deleted; try again") from None


def _measure_folder(folder: Path) -> int:
    """The bytes of all files in a folder that may just be changing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
        except OSError:
            continue
    return total
