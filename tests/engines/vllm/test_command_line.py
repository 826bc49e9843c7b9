"""The command line of vLLM's server, against what vLLM's own parser takes.

`parser.json` is what the parser of the pinned version says of itself. It is checked against the
parser where vLLM is installed, and lets all other tests do without it.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm.installed import needs_vllm
from thrifty.engines.vllm import command_line, describe_parser
from thrifty.engines.vllm.command_line import (
    LORA_RANKS,
    SOCKET,
    build_arguments,
    build_environment,
)
from thrifty.engines.vllm.options import VllmOptions
from thrifty.engines.vllm.packages import read_known

VARIANTS: dict[str, dict[str, Any]] = {
    "python": {"python": "/usr/bin/python3"},
    "context": {"context": 4096},
    "max_batch": {"max_batch": 16},
    "prefill_chunk": {"prefill_chunk": 512},
    "prefix_cache": {"prefix_cache": False},
    "kv_cache": {"kv_cache": 10**9},
    "kv_precision": {"kv_precision": "fp8"},
    "memory_share": {"memory_share": 0.4},
    "dtype": {"dtype": "float32"},
    "quantization": {"quantization": "fp8"},
    "tensor_parallel": {"tensor_parallel": 2},
    "lora": {"lora": "/adapters/tone"},
    "speculation": {"speculation": "prompt_lookup"},
    "draft_model": {"speculation": "draft", "draft_model": "small"},
    "draft_tokens": {"speculation": "prompt_lookup", "draft_tokens": 7},
    "lookup_match": {"speculation": "prompt_lookup", "lookup_match": 3},
    "sleep": {"sleep": True},
    "eager": {"eager": True},
}
"""A value other than the default for each option."""
NO_FLAG = {"python", "memory_share", "kv_cache"}
"""Options that become the command itself, or arguments of `build_arguments`."""


def build(**options: Any) -> list[str]:
    lora = (Path(options["lora"]), 16) if "lora" in options else None
    return build_arguments(
        VllmOptions(**options), Path("/models/one"), kv_bytes=10**9, memory_share=0.85, lora=lora,
        draft=Path("/models/small"),
    )  # fmt: skip


def split(arguments: list[str]) -> dict[str, list[str]]:
    """The values by flag."""
    found: dict[str, list[str]] = {}
    for part in arguments:
        if part.startswith("--"):
            assert part not in found, f"{part} is there twice"
            values = found[part] = []
        else:
            values.append(part)
    return found


def test_every_option_has_a_variant() -> None:
    assert set(VARIANTS) == set(VllmOptions.model_fields)


@pytest.mark.parametrize("option", VARIANTS)
def test_every_flag_is_one_that_the_parser_takes(option: str) -> None:
    known = read_known()["options"]
    for flag, values in split([*build(**VARIANTS[option]), SOCKET, "/tmp/s"]).items():
        assert flag in known, flag
        takes = known[flag]["values"]
        assert (takes == "0") == (not values), flag
        assert takes == "1+" or len(values) <= 1, flag
        for value in values:
            assert value in known[flag].get("choices", [value]), (flag, value)


@pytest.mark.parametrize("option", sorted(set(VARIANTS) - NO_FLAG))
def test_no_option_is_accepted_and_ignored(option: str) -> None:
    before = VARIANTS[option].copy()
    before.pop(option)
    if option == "draft_model":
        before = {}
    assert build(**before) != build(**VARIANTS[option])


def test_values_reach_their_flags() -> None:
    found = split(
        build(context=4096, max_batch=16, kv_precision="fp8", tensor_parallel=2, lora="/adapters/a")
    )
    assert found["--model"] == ["/models/one"]
    assert found["--max-model-len"] == ["4096"]
    assert found["--max-num-seqs"] == ["16"]
    assert found["--kv-cache-memory-bytes"] == [str(10**9)]
    assert found["--gpu-memory-utilization"] == ["0.850"]
    assert found["--kv-cache-dtype"] == ["fp8"]
    assert found["--tensor-parallel-size"] == ["2"]
    assert found["--lora-modules"] == ["adapter=/adapters/a"]
    assert found["--max-lora-rank"] == ["16"]
    assert "--enable-prefix-caching" in found
    assert "--trust-remote-code" not in found


def test_speculation_is_told_as_json() -> None:
    (told,) = split(build(speculation="prompt_lookup", draft_tokens=5))["--speculative-config"]
    assert json.loads(told) == {
        "method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    }  # fmt: skip
    (told,) = split(build(speculation="draft", draft_model="s"))["--speculative-config"]
    assert json.loads(told)["model"] == "/models/small"


def test_environment_keeps_vllm_off_the_network_and_in_the_home() -> None:
    found = build_environment(Path("/home/x/cache"), [0, 1], sleep=False)
    assert found["VLLM_NO_USAGE_STATS"] == found["HF_HUB_OFFLINE"] == "1"
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert "VLLM_SERVER_DEV_MODE" not in found
    folders = [value for value in found.values() if value.startswith("/")]
    assert folders
    assert all(value.startswith("/home/x/cache/") for value in folders)
    assert build_environment(Path("/c"), [0], sleep=True)["VLLM_SERVER_DEV_MODE"] == "1"


def test_ranks_are_those_that_the_parser_takes() -> None:
    assert [str(r) for r in LORA_RANKS] == read_known()["options"]["--max-lora-rank"]["choices"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recorded_parser_is_that_of_the_pinned_version(device: str) -> None:
    text = (importlib.resources.files("thrifty.engines.vllm") / f"{device}.txt").read_text()
    pin = re.search(r"^vllm(?:-cpu)?==(\S+)$", text, re.MULTILINE)
    assert pin is not None
    assert pin[1] == read_known()["version"]


def test_packages_are_all_pinned() -> None:
    for device in ("cpu", "cuda"):
        text = (importlib.resources.files("thrifty.engines.vllm") / f"{device}.txt").read_text()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert len(lines) > 100
        assert all(re.match(r"^[a-z0-9.-]+==[\w.+]+( ; .+)?$", line) for line in lines)


PARSE = f"""
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
import importlib.util
assert importlib.util.find_spec({command_line.MODULE!r}) is not None
for line in json.load(sys.stdin):
    validate_parsed_serve_args(make_arg_parser(FlexibleArgumentParser()).parse_args(line))
"""


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllms_parser_takes_every_command_line() -> None:
    lines = [[*build(**options), SOCKET, "/tmp/s"] for options in VARIANTS.values()]
    result = subprocess.run(
        [needs_vllm(), "-c", PARSE], input=json.dumps(lines), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_recorded_parser_is_up_to_date() -> None:
    result = subprocess.run(
        [needs_vllm(), describe_parser.__file__], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == read_known(), "run make vllm-parser"
