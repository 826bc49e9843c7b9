"""Install a built wheel and a built sdist into empty environments, and use what was installed.

    python -m tests.try_build dist

Run outside the checkout, so that nothing comes from it by accident.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

QUESTION = {"model": "echo", "messages": [{"role": "user", "content": "is it there"}]}


def main() -> None:
    dist = Path(sys.argv[1]).resolve()
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    for package in (wheel, sdist):
        with tempfile.TemporaryDirectory() as folder:
            try_package(package, Path(folder))
        print(f"{package.name} installs, starts, answers and stops")


def try_package(package: Path, folder: Path) -> None:
    """Install it into an environment of its own, and serve with it."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(package)], check=True)
    thrifty = str(folder / "env" / "bin" / "thrifty")
    run = {"cwd": folder, "env": {**os.environ, "THRIFTY_HOME": str(folder / "home")}}
    version = subprocess.run(
        [thrifty, "--version"], check=True, capture_output=True, text=True, **run
    )
    assert package.name.split("-")[1].removesuffix(".tar.gz") in version.stdout, version.stdout
    installed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"],
        check=True,
        capture_output=True,
        **run,
    )
    names = {entry["name"].lower() for entry in json.loads(installed.stdout)}
    assert not names & {"torch", "transformers", "ray"}, "the light install became heavy"
    (folder / "echo.yaml").write_text("engine: echo\ngateway: {port: 0}\n")
    output = folder / "up.txt"
    with output.open("w") as out:
        service = subprocess.Popen(
            [thrifty, "up", "echo.yaml", "--no-measure"],
            stdout=out,
            stderr=subprocess.STDOUT,
            **run,
        )
    try:
        deadline_s = time.monotonic() + 60
        while "is served at" not in output.read_text():
            assert service.poll() is None, output.read_text()
            assert time.monotonic() < deadline_s, output.read_text()
            time.sleep(0.1)
        url = output.read_text().split("is served at ")[1].split()[0]
        request = urllib.request.Request(
            f"{url}/chat/completions",
            json.dumps(QUESTION).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            answer = json.load(reply)
        assert "is it there" in answer["choices"][0]["message"]["content"], answer
    finally:
        service.send_signal(signal.SIGINT)
        assert service.wait(60) == 0, output.read_text()


if __name__ == "__main__":
    main()
