"""`thrifty models push` and `pull`, as a script uses them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.artifacts.stored import put
from tests.parts import run_thrifty
from thrifty.artifacts import Store
from thrifty.home import Home


def test_push_and_pull(tmp_path: Path) -> None:
    first, second = Home(tmp_path / "first"), Home(tmp_path / "second")
    _, artifact = put(Store(first.models))
    url = str(tmp_path / "remote")
    pushed = run_thrifty(first.root, "models", "push", "tiny", url, "--json")
    assert json.loads(pushed.stdout) == {
        "reference": f"file://{url}/tiny@v1", "artifact": artifact.id,
        "moved_bytes": artifact.size_bytes, "present_bytes": 0, "created": True,
    }  # fmt: skip
    pulled = run_thrifty(second.root, "models", "pull", f"{url}/tiny", "--name", "mine", "--json")
    found = json.loads(pulled.stdout)
    assert (found["name"], found["id"], found["moved_bytes"]) == (
        "mine@v1", artifact.id, artifact.size_bytes,
    )  # fmt: skip
    again = run_thrifty(first.root, "models", "push", "tiny", url)
    assert again.stdout == f"file://{url}/tiny@v1\n"
    assert "tiny was there already: 0 B sent" in again.stderr
    refused = run_thrifty(second.root, "models", "pull", "s3://me:hush@bucket/tiny")
    assert refused.returncode == 1
    assert "has a user name or password" in refused.stderr
    assert "hush" not in refused.stdout + refused.stderr
