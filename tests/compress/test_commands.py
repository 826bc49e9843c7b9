"""The compression commands as scripts call them; the calibration text has a default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from tests.parts import run_thrifty
from thrifty.artifacts import Store
from thrifty.home import Home

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    put(Store(Home(root).models))
    return root


def run(home: Path, *arguments: str) -> Any:
    done = run_thrifty(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("text", "ways"), [("calibration.txt", 3), ("none", 0)])
def test_eight_bits_learn_from_text_or_from_none(home: Path, text: str, ways: int) -> None:
    if text != "none":
        text = str(write_text(home / text, 20_000))
    made = run(home, "quantize", "tiny", "--scheme", "int8", "--out", f"e{ways}", "--text", text)
    assert len(made["recipes"]) == ways
    assert made["name"] == f"e{ways}@v1"


def test_sets_are_named_as_files_are(home: Path) -> None:
    """A fetched data set is read from its file."""
    data = Home(home).data
    data.mkdir(parents=True, exist_ok=True)
    write_text(home / "passages.txt", 60_000, seed=3)
    lines = [{"text": part} for part in (home / "passages.txt").read_text().split("\n") if part]
    (data / "passages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_text(data / "wiki.txt", 6000, seed=9)
    pruned = run(home, "prune", "tiny", "--parameters", "0.8", "--out", "lean", "--tokens", "2048")
    assert pruned["figures"]["parameters"] <= 0.8 * pruned["figures"]["parameters_before"]
    made = run(home, "quantize", "tiny", "--scheme", "int4", "--out", "small", "--tokens", "2048",
               "--bits", "6", "--held-out", "wiki")  # fmt: skip
    assert made["figures"]["bits_per_weight"] <= 6
    found = run(
        home, "evaluate", "lean", "--reference", "tiny", "--text", "wiki", "--window", "128"
    )
    assert set(found) >= {
        "kl_divergence",
        "same_top_token",
        "perplexity",
        "reference_perplexity",
        "tokens",
        "tasks",
    }
    assert found["kl_divergence"]["mean"] > 0
