"""Mergeable sketches of distributions: counts in buckets whose limits grow by a constant factor.

The quantile that a sketch gives differs from the exact one by at most `RELATIVE_ERROR`, however
many sketches were merged. Source: Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable
quantile sketch with relative-error guarantees" (VLDB 2019), without their bound on the number of
buckets: between a microsecond and a year there are fewer than 2,000.

A bucket i holds the values above GAMMA^(i-1), up to GAMMA^i. Values of at most `SMALLEST` are in
the lowest bucket. As bytes, a sketch is a sequence of LEB128 numbers: the zigzagged first index,
the count there, then for each further bucket the distance of its index and its count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RELATIVE_ERROR = 0.009
"""Below one percent, with room for the rounding of floating-point numbers."""
SMALL = 40
"""Up to so many values are few."""
SMALLEST = 1e-3
LARGEST = 1e11
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(GAMMA)
_MIDDLE = 2 / (1 + GAMMA)
"""What a bucket's upper limit is multiplied by for the value whose error is smallest."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sketch:
    """A distribution: `indexes` of buckets, ascending, and how many values each has."""

    indexes: Numbers
    counts: Numbers

    @property
    def count(self) -> int:
        """How many values it has seen."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float | None:
        """The value below which a `share` (0 to 1) of all values lies; None without values.

        It stands for the value of rank ceil(share * count), the nearest-rank definition.
        """
        total = self.count
        if total == 0:
            return None
        rank = max(1, math.ceil(share * total - 1e-9))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return _MIDDLE * GAMMA ** int(self.indexes[place])

    def share_within(self, limit: float) -> float | None:
        """The share of values up to `limit`, which counts as its bucket; None without values."""
        total = self.count
        if total == 0:
            return None
        bucket = math.ceil(math.log(min(max(limit, SMALLEST), LARGEST)) / _LOG_GAMMA - 1e-9)
        return float(self.counts[self.indexes <= bucket].sum()) / total

    def encode(self) -> bytes:
        """The sketch as bytes."""
        if not len(self.indexes):
            return b""
        first = int(self.indexes[0])
        numbers = np.empty(2 * len(self.indexes), np.int64)
        numbers[0] = 2 * first if first >= 0 else -2 * first - 1
        numbers[2::2] = np.diff(self.indexes)
        numbers[1::2] = self.counts
        return _encode_numbers(numbers)


EMPTY = Sketch(np.empty(0, np.int64), np.empty(0, np.int64))


def make_sketch(values: Sequence[float]) -> Sketch:
    """The sketch of some values; those that are not finite are left out."""
    if not values:
        return EMPTY
    given = np.asarray(values, np.float64)
    given = np.clip(given[np.isfinite(given)], SMALLEST, LARGEST)
    indexes = np.ceil(np.log(given) / _LOG_GAMMA - 1e-9).astype(np.int64)
    return Sketch(*np.unique(indexes, return_counts=True))


def extend_sketch(data: bytes | None, values: Sequence[float]) -> bytes:
    """The sketch `data` (None: an empty one) with some more values, as bytes.

    Few values are added without NumPy, whose calls would take ten times as long.
    """
    if len(values) > SMALL or (data is not None and len(data) > 4 * SMALL):
        return merge_sketches([decode_sketch(data), make_sketch(values)]).encode()
    counts: dict[int, int] = {}
    index, numbers = 0, _decode_few(data or b"")
    for place in range(0, len(numbers), 2):
        step = numbers[place]
        index += step if place else (step >> 1 if step % 2 == 0 else -(step + 1 >> 1))
        counts[index] = numbers[place + 1]
    for value in values:
        if math.isfinite(value):
            bounded = min(max(value, SMALLEST), LARGEST)
            index = math.ceil(math.log(bounded) / _LOG_GAMMA - 1e-9)
            counts[index] = counts.get(index, 0) + 1
    encoded = bytearray()
    before = None
    for index in sorted(counts):
        first = 2 * index if index >= 0 else -2 * index - 1
        step = first if before is None else index - before
        before = index
        for number in (step, counts[index]):
            rest = number
            while rest > 127:
                encoded.append(rest & 127 | 128)
                rest >>= 7
            encoded.append(rest)
    return bytes(encoded)


def _decode_few(data: bytes) -> list[int]:
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 127) << shift
        if byte < 128:
            numbers.append(number)
            number = shift = 0
        else:
            shift += 7
    if shift or len(numbers) % 2:
        raise ValueError("a sketch ends within a number, or has an index without a count")
    return numbers


def merge_sketches(sketches: Iterable[Sketch]) -> Sketch:
    """The sketch of all values of some sketches."""
    found = [one for one in sketches if len(one.indexes)]
    if not found:
        return EMPTY
    if len(found) == 1:
        return found[0]
    indexes = np.concatenate([one.indexes for one in found])
    low = int(indexes.min())
    sums = np.zeros(int(indexes.max()) - low + 1, np.int64)
    np.add.at(sums, indexes - low, np.concatenate([one.counts for one in found]))
    (places,) = np.nonzero(sums)
    return Sketch(places + low, sums[places])


def decode_sketch(data: bytes | None) -> Sketch:
    """The sketch that `encode` made; an empty one for None. Raises `ValueError` for other bytes."""
    return decode_sketches([data])[0]


def decode_sketches(datas: Sequence[bytes | None]) -> list[Sketch]:
    """Many sketches as `decode_sketch` reads one, in a fraction of the time. Raises
    `ValueError`.
    """
    joined = b"".join(data for data in datas if data)
    if not joined:
        return [EMPTY] * len(datas)
    numbers, ends = _decode_numbers(joined)
    sketches, place = [], 0
    limits = np.searchsorted(ends, np.cumsum([len(data or b"") for data in datas]))
    for data, limit in zip(datas, limits.tolist(), strict=True):
        if not data:
            sketches.append(EMPTY)
            continue
        indexes = numbers[place:limit:2].copy()
        counts = numbers[place + 1 : limit : 2]
        if len(indexes) != len(counts) or not data[-1] < 128:
            raise ValueError("a sketch has an index and a count for each bucket")
        first = int(indexes[0])
        indexes[0] = first >> 1 if first % 2 == 0 else -(first + 1 >> 1)
        sketches.append(Sketch(np.cumsum(indexes), counts))
        place = limit
    return sketches


def _encode_numbers(numbers: Numbers) -> bytes:
    """Numbers of at least 0 as LEB128: seven bits a byte, the lowest first, 128 added to all but
    the last.
    """
    lengths = np.ones(len(numbers), np.int64)
    rest = numbers >> 7
    while rest.any():
        lengths += rest > 0
        rest >>= 7
    digits = np.arange(int(lengths.max()))
    table = (numbers[:, None] >> (7 * digits)) & 127
    table |= np.where(digits < lengths[:, None] - 1, 128, 0)
    return table[digits < lengths[:, None]].astype(np.uint8).tobytes()


def _decode_numbers(data: bytes) -> tuple[Numbers, Numbers]:
    """The numbers, and the place of the last byte of each."""
    given = np.frombuffer(data, np.uint8)
    (ends,) = np.nonzero(given < 128)
    if not len(ends) or ends[-1] != len(given) - 1:
        raise ValueError("a sketch ends within a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    most = int((ends - starts).max()) + 1
    if most > 9:
        raise ValueError("a sketch has a number of more than 63 bits")
    numbers = np.zeros(len(ends), np.int64)
    for digit in range(most):
        (longer,) = np.nonzero(ends - starts >= digit)
        numbers[longer] |= (given[starts[longer] + digit].astype(np.int64) & 127) << (7 * digit)
    return numbers, ends
