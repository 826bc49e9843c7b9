"""Weights as constants of an OpenVINO graph, in 16, 8 or 4 bits.

A compressed weight is a small integer constant and the few operations that turn it back into
floats; OpenVINO recognises the pattern and multiplies with the integers directly. Grids are symmetric for each
group along a row, in 8 bits and in 4; asymmetric for each row of a table, which is in 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op
from openvino.op import Constant

from thrifty.artifacts.checkpoint import Tensors
from thrifty.errors import IntegrityError
from thrifty.graphs.arithmetic import ACTIVATION_GROUP, LEAST_ACTIVATION_GROUP

FloatArray = npt.NDArray[np.float32]

INT4_GROUP_SIZES = (128, 64, 32)
"""Tried in this order: the largest that divides a row."""
INT8_GROUP_SIZES = (64, 32)
"""As those: nearer than whole rows, and computed by the same kernels."""
LOWEST_INT4 = -8


def read_weight(tensors: Tensors, name: str, *sizes: int | None) -> FloatArray:
    """The tensor `name`, which must have these sizes (None: any). Raises `IntegrityError`: a graph
    that was built from a wrong one might read past its end.
    """
    # OpenVINO takes an array's memory for row after row, whatever the array says of its order.
    values = np.ascontiguousarray(tensors.read_tensor(name))
    fits = len(values.shape) == len(sizes) and all(
        wanted in (None, size) for wanted, size in zip(sizes, values.shape, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in sizes)
        raise IntegrityError(
            f"the tensor {name!r} is {' x '.join(map(str, values.shape))}, and its model's "
            f"settings say {wanted}; fetch the model again"
        )
    if values.ndim == 1:
        _check_finite(values)  # of matrices, those that round them do
    return values


def float16_weight(values: FloatArray) -> Any:
    """`values` in 16 bits. Raises `OverflowError` where they do not fit, and `IntegrityError` where
    one is no number.
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        _check_finite(values)
        raise OverflowError("a weight is larger than 65504, the largest float16")
    return op.convert(op.constant(halves), "f32")


@dataclass(frozen=True)
class Int8Codes:
    """A matrix in 8 bits: weight = (code - zero of its row) x scale of its group."""

    codes: npt.NDArray[Any]
    """[rows, columns], from -127 to 127, or unsigned where there are zeros."""
    scales: npt.NDArray[np.float16]
    """[rows, columns / group]; one for each row where there are zeros."""
    zeros: npt.NDArray[np.uint8] | None = None
    """[rows, 1]."""

    @property
    def bits_per_weight(self) -> float:
        """Of codes, zeros and scales."""
        columns = int(self.codes.shape[1])
        return 8 + (16 * int(self.scales.shape[1]) + (0 if self.zeros is None else 8)) / columns

    def dequantize(self) -> FloatArray:
        """The weights that the codes stand for, [rows, columns]."""
        group = self.codes.shape[1] // self.scales.shape[1]
        found: FloatArray = self.codes.astype(np.float32)
        if self.zeros is not None:
            found -= self.zeros
        found *= np.repeat(self.scales.astype(np.float32), group, axis=1)
        return found


def int8_codes(values: FloatArray) -> Int8Codes:
    """`values` ([rows, columns]) in 8 bits, with a scale for each group of columns; where no group
    divides them, with a scale and a zero point for each row.
    """
    rows, columns = values.shape
    group = _find_int8_group(columns)
    if group is None:
        return _round_rows(values)
    split = values.reshape(rows, columns // group, group)
    largest = np.abs(split).max(axis=2, keepdims=True)
    _check_finite(largest)
    scale = _halve_scales(largest / 127)
    scale[scale == 0] = 1
    codes = np.clip(np.round(split / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return Int8Codes(codes.reshape(rows, columns), scale[:, :, 0])


def int8_bits_per_weight(shapes: Sequence[tuple[int, int]]) -> float:
    """What `int8_codes` takes on average, over matrices of so many rows and columns."""
    bits = weights = 0.0
    for rows, columns in shapes:
        group = _find_int8_group(columns)
        bits += rows * (8 * columns + (16 * columns / group if group else 24))
        weights += rows * columns
    return bits / weights


def _find_int8_group(columns: int) -> int | None:
    return next((size for size in INT8_GROUP_SIZES if columns % size == 0), None)


def _round_rows(values: FloatArray) -> Int8Codes:
    low = np.minimum(values.min(axis=1, keepdims=True), 0)
    high = np.maximum(values.max(axis=1, keepdims=True), 0)
    _check_finite(high - low)
    scale = (high - low) / 255
    scale[scale == 0] = 1
    zero = np.clip(np.round(-low / scale), 0, 255)
    codes = np.clip(np.round(values / scale) + zero, 0, 255).astype(np.uint8)
    return Int8Codes(codes, _halve_scales(scale), zero.astype(np.uint8))


def int8_weight(values: FloatArray) -> Any:
    """`values` ([rows, columns]) as a constant in 8 bits."""
    return _multiply_out(int8_codes(values))


def _multiply_out(found: Int8Codes) -> Any:
    rows, columns = found.codes.shape
    if found.zeros is not None:
        centred = op.subtract(
            op.convert(op.constant(found.codes), "f16"), op.convert(op.constant(found.zeros), "f16")
        )
        return op.convert(op.multiply(centred, op.constant(found.scales)), "f32")
    split = found.codes.reshape(rows, found.scales.shape[1], -1)
    scaled = op.multiply(
        op.convert(op.constant(split), "f16"), op.constant(found.scales[:, :, None])
    )
    flat = op.reshape(scaled, op.constant(np.array([rows, columns])), special_zero=False)
    return op.convert(flat, "f32")


def int4_weight(values: FloatArray, group_size: int) -> Any:
    """`values` ([rows, columns]) in 4 bits, with a scale for each `group_size` columns."""
    rows, columns = values.shape
    groups = columns // group_size
    grouped = values.reshape(rows, groups, group_size)
    # The value of largest magnitude becomes -8, the one end of the grid that has no mirror image.
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2, keepdims=True), axis=2)
    _check_finite(extreme)
    scale = extreme / -8
    scale[scale == 0] = 1
    codes = np.clip(np.round(grouped / scale), -8, 7).astype(np.int8)
    return int4_codes(codes.reshape(rows, columns), _halve_scales(scale[:, :, 0]))


def int4_codes(
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float16],
    zeros: npt.NDArray[np.float16] | None = None,
) -> Any:
    """A matrix that is in 4 bits already: codes [rows, columns] from -8 to 7, scales [rows, groups] and,
    as those, zero points from -8 to 7.
    """
    rows, columns = codes.shape
    groups = scales.shape[1]
    shape = [rows, groups, columns // groups]
    if zeros is None:
        whole = op.convert(_pack(codes, shape, ov.Type.i4), "f16")
    else:
        # Zero points are multiplied with as integers only where all is unsigned.
        lifted, shifts = codes - LOWEST_INT4, zeros.astype(np.int8) - LOWEST_INT4
        whole = op.subtract(
            op.convert(_pack(lifted, shape, ov.Type.u4), "f16"),
            op.convert(_pack(shifts, [rows, groups, 1], ov.Type.u4), "f16"),
        )
    scaled = op.multiply(whole, op.constant(scales[:, :, None]))
    flat = op.reshape(scaled, op.constant(np.array([rows, columns])), special_zero=False)
    return op.convert(flat, "f32")


def _pack(values: npt.NDArray[np.int8], shape: list[int], kind: Any) -> Any:
    """A constant of 4-bit integers, two to a byte."""
    flat = np.append(values.reshape(-1), np.zeros(values.size % 2, np.int8)) & 0xF
    packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
    return Constant(ov.Tensor(packed, ov.Shape(shape), kind), shared_memory=False)


def choose_activation_group(model: ov.Model) -> int:
    """How many activations should share a scale in this graph: no more than weights do, or the engine
    computes with floats instead, which takes several times as long.
    """
    groups = [
        constant.get_output_shape(0)[-1]
        for constant in model.get_ops()
        if constant.get_type_name() == "Constant"
        and constant.get_output_element_type(0) in (ov.Type.i4, ov.Type.u4, ov.Type.i8)
        and len(constant.get_output_shape(0)) == 3
    ]
    # Zero points have one column to a group.
    least = min([ACTIVATION_GROUP, *(int(group) for group in groups if group > 1)])
    return max(LEAST_ACTIVATION_GROUP, least)


def _check_finite(values: FloatArray) -> None:
    """Raise where a weight is infinite or no number: each keeps the extremes from being finite."""
    if not np.isfinite(values).all():
        raise IntegrityError("a weight is not a finite number; fetch the model again")


def _halve_scales(scales: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """`scales` in 16 bits. Raises `OverflowError` where they do not fit."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    if not np.isfinite(halves).all():
        raise OverflowError("a weight is too large for a scale in float16")
    return halves


def linear_weight(values: FloatArray, scheme: str) -> Any:
    """A weight matrix under `scheme`: `none` (16 bits), `int8` or `int4`."""
    if scheme == "int4":
        for group_size in INT4_GROUP_SIZES:
            if values.shape[1] % group_size == 0:
                return int4_weight(values, group_size)
        return int8_weight(values)
    return int8_weight(values) if scheme == "int8" else float16_weight(values)


def table_weight(values: FloatArray, scheme: str) -> Any:
    """The embedding table or the head under `scheme`; never below 8 bits, which would cost most."""
    # Rows are looked up one by one, which the engine does with one scale to a row.
    return float16_weight(values) if scheme == "none" else _multiply_out(_round_rows(values))


class Weights(Protocol):
    """How a graph's weights are kept: given each by name, as floats."""

    inputs: list[Any]
    """Parameters that it adds to the graph."""

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """`x` [..., columns] by the matrix `values` [rows, columns]: [..., rows]."""
        ...

    def table(self, name: str, values: FloatArray) -> Any:
        """The embedding table, or the head."""
        ...


class SchemeWeights:
    """All under one scheme: `none`, `int8` or `int4`."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self.inputs: list[Any] = []

    def multiply(self, x: Any, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        found = op.matmul(x, linear_weight(values, self._scheme), False, True)
        found.set_friendly_name(name)  # by which adapters find it
        return found

    def table(self, name: str, values: FloatArray) -> Any:
        """See `Weights`."""
        return table_weight(values, self._scheme)
