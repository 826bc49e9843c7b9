"""Static activations: what graphs compute with them, and the estimate of what they cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from tests.graphs.test_decoder import MODELS
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.compress.quantize.static_activations import (
    HEAD,
    TABLE,
    OwnHead,
    StaticActivationWeights,
    choose_static,
    count_bits,
    find_noise,
)
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.processor import SCHEMES
from thrifty.graphs.arithmetic import REFERENCE_PROPERTIES, limit_features, limit_properties

RNG = np.random.default_rng(4)
WEIGHTS = RNG.normal(0, 0.05, (48, 128)).astype(np.float32)
FED = RNG.normal(0, 1, (1, 40, 128)).astype(np.float32)


EXACT = SCHEMES["w8a8"].runs_on(limit_features(detect_machine().features))
needs_exact_sums = pytest.mark.skipif(not EXACT, reason="this level has no 8-bit dot products")


def compute(weights: StaticActivationWeights, names: list[str]) -> tuple[list[Any], ov.Model]:
    x = op.parameter([1, -1, 128], ov.Type.f32)
    model = ov.Model([weights.multiply(x, name, WEIGHTS) for name in names], [x])
    kinds = {"INFERENCE_PRECISION_HINT": "f32", **limit_properties()}
    found = ov.Core().compile_model(model.clone(), "CPU", kinds)({0: FED})
    return [found[index][0] for index in range(len(names))], model


def multiply_integers(largest: float, bits: int) -> Any:
    """What a matrix of so many bits gives with static activations."""
    step = largest / 127
    fed = np.clip(np.round(FED[0] / step), -128, 127) * step
    scales = np.abs(WEIGHTS).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return fed @ (np.round(WEIGHTS / scales) * scales).T


@pytest.mark.engine
@pytest.mark.parametrize("largest", [4.5, 1.5])
@pytest.mark.parametrize("bits", [pytest.param(8, marks=needs_exact_sums), 7])
def test_a_graph_multiplies_integers_on_the_fixed_grids(bits: int, largest: float) -> None:
    (found,), model = compute(StaticActivationWeights({"m": largest}, bits), ["m"])
    np.testing.assert_allclose(found, multiply_integers(largest, bits), rtol=1e-3, atol=5e-3)
    codes = [
        one.get_data() for one in model.get_ops()
        if one.get_type_name() == "Constant" and one.get_element_type() == ov.Type.i8
    ]  # fmt: skip
    assert [int(np.abs(one).max()) for one in codes] == [2 ** (bits - 1) - 1]


@pytest.mark.engine
@pytest.mark.parametrize("bits", [7, 8])
def test_reference_arithmetic_is_right_on_every_processor(bits: int) -> None:
    """Known answers are computed with it, also where integers would be added wrongly."""
    x = op.parameter([1, -1, 128], ov.Type.f32)
    model = ov.Model([StaticActivationWeights({"m": 1.5}, bits).multiply(x, "m", WEIGHTS)], [x])
    found = ov.Core().compile_model(model, "CPU", REFERENCE_PROPERTIES)({0: FED})[0][0]
    np.testing.assert_allclose(found, multiply_integers(1.5, bits), rtol=2e-3, atol=1e-2)


@pytest.mark.engine
def test_matrices_that_are_fed_the_same_round_it_once_and_others_as_ever() -> None:
    (first, second, other), model = compute(
        StaticActivationWeights({"q": 4.5, "k": 4.5}), ["q", "k", "not fixed"]
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(other, FED[0] @ WEIGHTS.T, atol=0.05)
    kinds = [one.get_type_name() for one in model.get_ops()]
    assert kinds.count("FakeQuantize") == 1


def test_noise_is_the_share_of_the_outputs_energy_that_rounding_costs() -> None:
    fed = (FED[0] * np.linspace(0.1, 3, 128)).astype(np.float32)
    tensors: Any = SimpleNamespace(read_tensor=lambda name: WEIGHTS)
    largest, squares = np.abs(fed).max(axis=0), np.square(fed).mean(axis=0)
    predicted = find_noise(tensors, "m", largest, squares)
    step = largest.max() / 127
    rounded = np.round(fed / step) * step
    measured = np.square((rounded - fed) @ WEIGHTS.T).sum() / np.square(fed @ WEIGHTS.T).sum()
    assert predicted == pytest.approx(measured, rel=0.2)
    # One input that sticks out makes the grid coarse for all.
    assert find_noise(tensors, "m", largest * 10, squares) == pytest.approx(100 * predicted)
    assert find_noise(tensors, "m", largest * 0, squares * 0) == np.inf


def test_matrices_that_lose_little_are_fixed() -> None:
    assert choose_static({"a": 0.001, "b": 0.003, "c": np.inf}, 0.003) == {"a", "b"}
    shapes = {"a": (64, 128), "b": (128, 64)}
    assert count_bits(shapes, {"a", "b"}) == pytest.approx(8 + (32 / 128 + 32 / 64) / 2)
    assert count_bits(shapes, set()) == 8.25


@pytest.mark.parametrize("name", ["llama", "its own head"])
def test_a_head_of_its_own_is_the_table_where_there_is_no_other(name: str, tmp_path: Path) -> None:
    tensors = load_decoder(MODELS[name].write_safetensors(tmp_path)).tensors
    own = OwnHead(tensors)
    assert HEAD in own
    head = own.read_tensor(HEAD)
    np.testing.assert_array_equal(head, tensors.read_tensor(HEAD if HEAD in tensors else TABLE))
    assert "model.norm.weight" in own
    assert "model.nothing" not in own
