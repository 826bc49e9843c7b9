"""Smoothed decoders: the same function, and activations that are easier to round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openvino import opset13 as op

from tests.graphs.test_decoder import EXACT, MODELS, PROMPT, Graph
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.compress.calibration import collect_importance
from thrifty.compress.prune.views import ReplacedTensors
from thrifty.compress.quantize.smooth import MOST, smooth
from thrifty.graphs.decoder import build_decoder
from thrifty.graphs.weights import int8_codes

pytestmark = pytest.mark.engine

WINDOWS = [np.array(PROMPT, np.int64)]
OUT = "model.layers.0.self_attn.o_proj"
DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"


def load(name: str, folder: Path) -> DecoderCheckpoint:
    return load_decoder(MODELS[name].write_safetensors(folder))


class Floats:
    """Weights as they are: in 16 bits, others are rounded otherwise."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []

    def multiply(self, x: Any, name: str, values: Any) -> Any:
        return op.matmul(x, op.constant(values), False, True)

    def table(self, name: str, values: Any) -> Any:
        return op.constant(values)


def run(checkpoint: DecoderCheckpoint) -> Any:
    return Graph(build_decoder(checkpoint, Floats())).run([PROMPT])[0]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["llama", "biases", "qwen2", "qwen3", "its own head"])
def test_a_smoothed_decoder_computes_the_same(name: str, power: float, tmp_path: Path) -> None:
    checkpoint = load(name, tmp_path)
    smoothed = smooth(checkpoint, collect_importance(checkpoint, WINDOWS), power)
    np.testing.assert_allclose(run(smoothed), run(checkpoint), atol=3 * EXACT)
    for part in (DOWN, OUT):
        before, after = (
            one.tensors.read_tensor(f"{part}.weight") for one in (checkpoint, smoothed)
        )
        assert not np.allclose(before, after)


def test_inputs_that_stick_out_become_smaller(tmp_path: Path) -> None:
    checkpoint = load("llama", tmp_path)
    loud = checkpoint.tensors.read_tensor(f"{UP}.weight").copy()
    loud[3] *= 40
    checkpoint = DecoderCheckpoint(
        checkpoint.shape, ReplacedTensors(checkpoint.tensors, {f"{UP}.weight": loud})
    )
    squares = collect_importance(checkpoint, WINDOWS)
    after = collect_importance(smooth(checkpoint, squares, 0.6), WINDOWS)

    def crest(found: Any) -> float:
        return float(np.sqrt(found.max() / found.mean()))

    assert crest(after[DOWN]) < 0.7 * crest(squares[DOWN])


def test_factors_are_bounded_and_dead_columns_are_left_alone(tmp_path: Path) -> None:
    checkpoint = load("llama", tmp_path)
    squares = collect_importance(checkpoint, WINDOWS)
    awq_scales = squares[DOWN].copy()
    awq_scales[0], awq_scales[1], awq_scales[2] = 1e20, 1e-20, 0
    smoothed = smooth(checkpoint, {**squares, DOWN: awq_scales}, 0.5)
    before, after = (one.tensors.read_tensor(f"{DOWN}.weight") for one in (checkpoint, smoothed))
    factors = np.median(after / before, axis=0)
    assert factors.max() == pytest.approx(MOST, rel=1e-3)
    assert factors.min() == pytest.approx(1 / MOST, rel=1e-3)
    assert factors[2] == pytest.approx(1)
    assert np.isfinite(int8_codes(after).dequantize()).all()
