"""Weights on their grids: as close as the bits allow, and the few values that have no grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as op

from thrifty.errors import IntegrityError
from thrifty.graphs.weights import (
    INT4_GROUP_SIZES,
    choose_activation_group,
    float16_weight,
    int4_weight,
    int8_codes,
    int8_weight,
    linear_weight,
    read_weight,
    table_weight,
)

Array = npt.NDArray[np.float32]
HALF = 2.0**-10
"""What rounding a scale to float16 costs at most, relative, and a little more."""


def expand(node: Any) -> Array:
    """The floats that a weight of the graph turns into, exactly as its operations say."""
    model = ov.Model([op.result(node)], [], "weight")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values: Array = compiled.create_infer_request().infer({})[0].copy()
    return values


def constants(node: Any) -> set[str]:
    """The types of a weight's constants."""
    ops = ov.Model([op.result(node)], [], "weight").get_ops()
    return {o.get_element_type().get_type_name() for o in ops if o.get_type_name() == "Constant"}


def draw(seed: int, *shape: int, scale: float = 0.05, shift: float = 0.0) -> Array:
    generator = np.random.default_rng(seed)
    return (shift + scale * generator.standard_normal(shape)).astype(np.float32)


EIGHT_BITS = settings(max_examples=15)


@EIGHT_BITS
@given(
    seed=st.integers(0, 99), scale=st.sampled_from([1e-2, 1.0, 100.0]),
    shift=st.sampled_from([0.0, 1.0, -5.0]),
)  # fmt: skip
def test_eight_bits_are_within_a_step(seed: int, scale: float, shift: float) -> None:
    values = draw(seed, 5, 48, scale=scale, shift=shift * scale)
    low = np.minimum(values.min(axis=1), 0)
    high = np.maximum(values.max(axis=1), 0)
    step = (high - low) / 255
    error = np.abs(expand(int8_weight(values)) - values).max(axis=1)
    # Half a step for the code, half a step for the zero point, and the scale's own rounding.
    assert (error <= step * (1 + 255 * HALF)).all()


@EIGHT_BITS
@given(seed=st.integers(0, 99), columns=st.sampled_from([96, 128]))
def test_eight_bits_in_groups_are_within_a_step(seed: int, columns: int) -> None:
    values = draw(seed, 5, columns)
    group = 64 if columns % 64 == 0 else 32
    step = np.abs(values.reshape(5, -1, group)).max(axis=2, keepdims=True) / 127
    error = np.abs(expand(int8_weight(values)) - values).reshape(5, -1, group)
    # Half a step, and the scale's own rounding.
    assert (error <= step * (0.5 + 127 * HALF)).all()
    np.testing.assert_allclose(
        expand(int8_weight(values)), int8_codes(values).dequantize(), atol=1e-6
    )


def test_activations_share_a_scale_with_no_more_than_weights_do() -> None:
    def build(values: np.ndarray, scheme: str) -> ov.Model:
        x = op.parameter([1, values.shape[1]], ov.Type.f32)
        y = op.matmul(x, linear_weight(values, scheme), False, True)
        return ov.Model([y], [x])

    assert choose_activation_group(build(draw(1, 4, 128), "int8")) == 64
    assert choose_activation_group(build(draw(1, 4, 96), "int8")) == 32
    assert choose_activation_group(build(draw(1, 4, 256), "int4")) == 64
    assert choose_activation_group(build(draw(1, 4, 96), "int4")) == 32
    assert choose_activation_group(build(draw(1, 4, 96), "none")) == 64


def test_eight_bits_keep_zero_exactly() -> None:
    values = draw(1, 4, 48, shift=0.1)
    values[:, 3] = 0
    assert (expand(int8_weight(values))[:, 3] == 0).all()


@EIGHT_BITS
@given(seed=st.integers(0, 99), group=st.sampled_from(INT4_GROUP_SIZES))
def test_four_bits_are_within_a_step_of_their_group(seed: int, group: int) -> None:
    values = draw(seed, 3, 2 * group)
    grouped = values.reshape(3, 2, group)
    step = np.abs(grouped).max(axis=2, keepdims=True) / 8
    error = np.abs(expand(int4_weight(values, group)).reshape(grouped.shape) - grouped)
    # The grid ends at -8 and 7 steps: what lies opposite the largest value may be a step away.
    assert (error <= step * (1 + 8 * HALF)).all()
    assert (error <= step * (0.5 + 8 * HALF)).mean() > 0.95


def test_largest_of_each_group_is_kept() -> None:
    values = draw(3, 2, 64)
    kept = expand(int4_weight(values, 32)).reshape(2, 2, 32)
    grouped = values.reshape(2, 2, 32)
    at = np.abs(grouped).argmax(axis=2, keepdims=True)
    np.testing.assert_allclose(
        np.take_along_axis(kept, at, 2), np.take_along_axis(grouped, at, 2), rtol=HALF
    )


def test_sixteen_bits_are_float16() -> None:
    values = draw(4, 3, 8)
    assert (expand(float16_weight(values)) == values.astype(np.float16)).all()


def test_what_does_not_fit_sixteen_bits_is_refused() -> None:
    with pytest.raises(OverflowError, match="larger than 65504"):
        float16_weight(np.full((2, 2), 70_000.0, dtype=np.float32))


@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_weights_that_are_no_numbers_are_refused(scheme: str, value: float) -> None:
    values = draw(2, 2, 32)
    values[1, 3] = value
    with pytest.raises(IntegrityError, match="not a finite number; fetch the model again"):
        linear_weight(values, scheme)


@pytest.mark.parametrize("make", [int8_weight, lambda values: int4_weight(values, 32)])
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_rows_of_one_value_are_kept(make: Any, value: float) -> None:
    values = np.full((2, 32), value, dtype=np.float32)
    np.testing.assert_allclose(expand(make(values)), values, rtol=HALF)


@pytest.mark.parametrize(
    ("columns", "scheme", "expected"),
    [
        (128, "int4", {"i4", "f16", "i64"}),
        (96, "int4", {"i4", "f16", "i64"}),
        (48, "int4", {"u8", "f16"}),
        (128, "int8", {"i8", "f16", "i64"}),
        (48, "int8", {"u8", "f16"}),
        (128, "none", {"f16"}),
    ],
)
def test_weights_take_the_largest_group_that_fits(
    columns: int, scheme: str, expected: set[str]
) -> None:
    assert constants(linear_weight(draw(5, 2, columns), scheme)) == expected


@pytest.mark.parametrize(("scheme", "kind"), [("none", "f16"), ("int8", "u8"), ("int4", "u8")])
def test_tables_never_go_below_eight_bits(scheme: str, kind: str) -> None:
    assert kind in constants(table_weight(draw(6, 2, 128), scheme))
    assert "i4" not in constants(table_weight(draw(6, 2, 128), scheme))


class Tensors:
    """One tensor."""

    def __contains__(self, name: str) -> bool:
        return True

    def read_tensor(self, name: str) -> Array:
        return np.zeros((3, 4), dtype=np.float32)


def test_tensor_of_another_size_is_refused() -> None:
    assert read_weight(Tensors(), "w", 3, None).shape == (3, 4)
    with pytest.raises(IntegrityError, match=r"tensor 'w' is 3 x 4, and .* settings say any x 5;"):
        read_weight(Tensors(), "w", None, 5)
    with pytest.raises(IntegrityError, match=r"is 3 x 4, and .* say 12; fetch the model again"):
        read_weight(Tensors(), "w", 12)


@pytest.mark.parametrize(("scheme", "value"), [("int4", 1e6), ("int8", 1e7)])
def test_scales_that_do_not_fit_are_refused(scheme: str, value: float) -> None:
    """They would be infinite, and every logit no number."""
    values = np.ones((2, 64), np.float32)
    values[0, 0] = value
    with pytest.raises(OverflowError, match="too large for a scale in float16"):
        linear_weight(values, scheme)


def test_vectors_are_finite() -> None:
    class One:
        def __contains__(self, name: str) -> bool:
            return True

        def read_tensor(self, name: str) -> Array:
            return np.array([1, np.nan], np.float32)

    with pytest.raises(IntegrityError, match="not a finite number"):
        read_weight(One(), "norm", 2)
