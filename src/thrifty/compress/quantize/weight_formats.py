"""The forms that a matrix may take, made and weighed one matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.compress.quantize.awq import HalfArray, find_awq_scales
from thrifty.compress.quantize.gptq import factor_inputs, quantize, round_to_nearest
from thrifty.compress.quantize.int4 import Grid, Int4Codes, output_error
from thrifty.compress.quantize.low_rank import find_low_rank
from thrifty.errors import CompressionError
from thrifty.graphs.weights import Int8Codes, int8_codes
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]
Codes = Int4Codes | Int8Codes

MIN_GROUP = 16
"""Where a matrix's columns are no multiple of a group, the group is halved, down to this."""
RANK = 8


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix is kept."""

    grid: Grid | None
    """None: in 8 bits, by rows."""
    group: int = 0
    awq: bool = False
    """Whether columns that are fed large values are made larger first."""
    rank: int = 0
    """Of a product that is added; 0: none."""
    plain: bool = False
    """Whether each weight is rounded on its own."""

    def __str__(self) -> str:
        if self.grid is None:
            return "8 bits"
        words = [f"{self.grid.value}, groups of {self.group}"]
        words += ["round to nearest"] if self.plain else []
        words += ["AWQ"] if self.awq else []
        words += [f"a correction of rank {self.rank}"] if self.rank else []
        return ", ".join(words)


EIGHT_BITS = WeightFormat(None)
PLAIN = WeightFormat(Grid.SYMMETRIC, 64, plain=True)
BASE = WeightFormat(Grid.SYMMETRIC, 64)
"""What a matrix's sensitivity is measured in, and other forms are compared with."""
WEIGHT_FORMATS = (
    *(
        WeightFormat(grid, group, awq)
        for grid in Grid
        for group in (64, 32)
        for awq in (False, True)
    ),
    *(WeightFormat(Grid.SYMMETRIC, 64, awq, RANK) for awq in (False, True)),
    EIGHT_BITS,
)


@dataclass(frozen=True)
class FormatError:
    """A form of a matrix, and what is lost by it."""

    form: WeightFormat
    bits_per_weight: float
    error: float
    """Of the layer's outputs over calibration text: its mean square over that of the outputs."""


class Quantizer:
    """Makes the matrices of a decoder in any form. `inputs` has, for each by name, the mean of x x^T over
    what it is fed; matrices that are fed the same share one array.
    """

    def __init__(self, checkpoint: DecoderCheckpoint, inputs: Mapping[str, FloatArray]) -> None:
        self._checkpoint = checkpoint
        self._inputs = inputs
        self.names = list(inputs)
        self._awq_scales: dict[int, HalfArray | None] = {}
        self._factors: dict[tuple[int, bool], FloatArray] = {}

    def size(self, name: str) -> int:
        """How many weights a matrix has."""
        return int(self._read(name).size)

    def make(self, name: str, form: WeightFormat) -> Codes:
        """The matrix in that form. Raises `CompressionError` where it has none in 4 bits."""
        values = self._read(name)
        return int8_codes(values) if form.grid is None else self._make(name, values, form)

    def make_all(
        self, forms: Mapping[str, WeightFormat], on_progress: OnProgress = ignore_progress
    ) -> Mapping[str, Codes]:
        """Each matrix in its form, made when it is asked for: all at once take much memory."""
        return _Made(self, forms, on_progress)

    def weigh(
        self, name: str, forms: Iterable[WeightFormat] = WEIGHT_FORMATS
    ) -> Iterator[FormatError]:
        """What the matrix loses by each of `forms`; AWQ's are left out where it does not help."""
        values, inputs = self._read(name), self._inputs[name]
        for form in forms:
            if form.awq and self._find_awq_scales(name) is None:
                continue
            found = self.make(name, form)
            error = output_error(values, found.dequantize(), inputs)
            yield FormatError(form, found.bits_per_weight, error)

    def _make(self, name: str, values: FloatArray, form: WeightFormat) -> Int4Codes:
        assert form.grid is not None
        inputs = self._inputs[name]
        group = _fit_group(name, values, form.group)
        if form.plain:
            return round_to_nearest(values, group, form.grid)
        awq_scales = self._find_awq_scales(name) if form.awq else None
        by = np.ones(1, np.float32) if awq_scales is None else awq_scales.astype(np.float32)
        fed = inputs if awq_scales is None else inputs * np.outer(by, by)
        factor = self._factor(name, form.awq, fed)
        found = quantize(values / by, fed, group, form.grid, factor=factor)
        found = Int4Codes(found.codes, found.scales, found.zeros, awq_scales)
        if not form.rank:
            return found
        rank = min(form.rank, *values.shape)
        correction = find_low_rank(values, found.dequantize(), inputs, rank)
        return Int4Codes(found.codes, found.scales, found.zeros, awq_scales, correction)

    def _find_awq_scales(self, name: str) -> HalfArray | None:
        """One for all matrices that are fed the same."""
        inputs = self._inputs[name]
        if id(inputs) not in self._awq_scales:
            fed = [self._read(n) for n, x in self._inputs.items() if x is inputs]
            group = _fit_group(name, fed[0], BASE.group)
            self._awq_scales[id(inputs)] = find_awq_scales(fed, inputs, group)
        return self._awq_scales[id(inputs)]

    def _factor(self, name: str, awq: bool, fed: FloatArray) -> FloatArray:
        """Those of one input are kept: matrices come in the order in which they are fed."""
        key = (id(self._inputs[name]), awq)
        if key not in self._factors:
            self._factors = {k: v for k, v in self._factors.items() if k[0] == key[0]}
            self._factors[key] = factor_inputs(fed)
        return self._factors[key]

    def _read(self, name: str) -> FloatArray:
        return self._checkpoint.tensors.read_tensor(f"{name}.weight").astype(np.float32)


class _Made(Mapping[str, Codes]):
    def __init__(
        self, quantizer: Quantizer, forms: Mapping[str, WeightFormat], on_progress: OnProgress
    ) -> None:
        self._quantizer = quantizer
        self._forms = forms
        self._on_progress = on_progress
        self._made = 0

    def __getitem__(self, name: str) -> Codes:
        found = self._quantizer.make(name, self._forms[name])
        self._made += 1
        self._on_progress(Progress("quantize", self._made, len(self._forms), "matrices"))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._forms)

    def __len__(self) -> int:
        return len(self._forms)


def _fit_group(name: str, values: FloatArray, group: int) -> int:
    size = math.gcd(values.shape[1], group)
    if size < MIN_GROUP:
        raise CompressionError(
            f"{name} has {values.shape[1]} columns, which no group of {MIN_GROUP} or more divides"
        )
    return size
