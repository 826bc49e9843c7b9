"""The known-answer test: what is right passes under every arithmetic, what is wrong does not."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.engines.test_prepare import END, MODEL, make_settings, prepare, put
from thrifty.artifacts import Store
from thrifty.engines import known_answers
from thrifty.engines.known_answers import (
    FILE,
    TEXTS,
    TOLERANCE,
    TOP,
    KnownAnswers,
    KnownEmbedding,
    KnownToken,
    judge_embeddings,
    judge_tokens,
    measure_difference,
    read_known_answers,
    write_known_answers,
)
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.processor import SCHEMES
from thrifty.errors import IntegrityError
from thrifty.graphs.arithmetic import LIMIT_VARIABLE, LIMITS

ONE = KnownToken([1, 2], [7, 8, 9], [-0.5, -1.0, -3.0])


def test_difference_is_that_of_likelihoods() -> None:
    assert measure_difference([ONE], [(7, -0.5)]) == 0
    # The likeliest token, with another log-probability than was known.
    assert measure_difference([ONE], [(7, -0.8)]) == pytest.approx(0.3)
    # Another token: as much less likely as it was.
    assert measure_difference([ONE], [(8, -0.9)]) == pytest.approx(0.5)
    # One that was not among the likeliest counts as the last of them at least.
    assert measure_difference([ONE], [(1, -0.9)]) == pytest.approx(2.5)
    assert measure_difference([ONE, ONE], [(7, -0.5), (1, -4.0)]) == pytest.approx(1.25)


def test_verdicts_name_the_difference_and_the_next_step() -> None:
    assert judge_tokens([ONE], [(7, -0.5 - TOLERANCE)]) is None
    fault = judge_tokens([ONE], [(7, -0.5 - 2 * TOLERANCE)])
    assert fault is not None
    assert "differ by 2.00 nats, more than 1," in fault
    assert "compress: int8" in fault
    assert "differ by inf nats" in (judge_tokens([ONE], [(7, math.nan)]) or "")
    known = KnownEmbedding([1], [0.6, 0.8])
    assert judge_embeddings([known], [[0.59, 0.81]]) is None
    for wrong in ([0.8, -0.6], [0.0, 0.0], [math.nan, 1.0], [1.0]):
        assert "agree by" in (judge_embeddings([known], [wrong]) or "")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_known_answers(tmp_path) is None
    write_known_answers(tmp_path, KnownAnswers([ONE]))
    assert read_known_answers(tmp_path) == KnownAnswers([ONE])
    (tmp_path / FILE).write_text("{")
    with pytest.raises(IntegrityError, match="prepare the model anew"):
        read_known_answers(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("known") / "models")
    return prepare(store, put(store), "int8")[1]


def answer(folder: Path, **options: Any) -> float:
    """How far a worker's answers are from the known ones."""
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    known = read_known_answers(folder)
    assert known is not None
    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=32, eos_token_ids=(END,), **options
    )
    return measure_difference(known.tokens, DecoderWorker(settings).answer_known(known.tokens))


@pytest.mark.engine
def test_a_model_is_prepared_with_known_answers(folder: Path) -> None:
    known = read_known_answers(folder)
    assert known is not None
    assert len(known.tokens) == len(TEXTS)
    assert not known.embeddings
    for one in known.tokens:
        assert 0 < len(one.prompt) <= known_answers.MOST_TOKENS
        assert len(set(one.tokens)) == TOP
        assert one.logprobs == sorted(one.logprobs, reverse=True)
        assert max(one.tokens) < MODEL.vocab
        assert 0 < sum(map(math.exp, one.logprobs)) < 1.01


@pytest.mark.engine
@pytest.mark.parametrize(
    "options",
    [{"kv_precision": "f16"}, {"activation_group": 32}, {"activation_group": 64}, {"kv_precision": "u8"}],
    ids=str,
)  # fmt: skip
def test_however_it_is_served_its_answers_are_near(folder: Path, options: dict[str, Any]) -> None:
    """A model of random weights, whose logits differ more than those of any that learned."""
    assert answer(folder, **options) < TOLERANCE


@pytest.mark.engine
def test_damaged_weights_do_not_become_ready(folder: Path, tmp_path: Path) -> None:
    """As a fleet starts it: the server ends and says why."""
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    path = damaged / "openvino_model.bin"
    weights = np.frombuffer(path.read_bytes(), np.uint8).copy()
    middle = len(weights) // 2
    weights[middle : middle + len(weights) // 4] ^= 0x15
    path.write_bytes(weights.tobytes())
    settings = make_settings(str(damaged), "decoder", 1, kv_blocks=32, context=256)
    text = json.dumps({"name": "m", "port": 0, "worker": msgspec.to_builtins(settings)})
    ended = subprocess.run(
        [sys.executable, "-m", "thrifty.engines.openvino", text],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "the model could not be loaded: its next tokens differ by" in ended.stderr
    assert "Prepare it anew on this machine" in ended.stderr


@pytest.mark.engine
@pytest.mark.parametrize("level", ["AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_saturation_is_found_by_trying(level: str) -> None:
    """At levels below the processor's own; oneDNN reads the limit once in a process."""
    if not LIMITS[level] <= detect_machine().features:
        pytest.skip(f"this processor has no {level}")
    code = "from thrifty.engines.openvino.exact_sums import find_saturation as f; print(f())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, LIMIT_VARIABLE: level},
    ).stdout  # fmt: skip
    if SCHEMES["w8a8"].runs_on(LIMITS[level]):
        assert found == "None\n"
    else:
        assert "adds products of 8-bit integers wrongly" in found
        assert "in place of 1032256" in found
