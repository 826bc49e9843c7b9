"""Which processor features OpenVINO uses, and what its forms of weights need of them.

OpenVINO's kernels come from oneDNN, which `ONEDNN_MAX_CPU_ISA` limits to older instruction sets.
Tests and comparisons use that; so what counts is what the variable leaves of the processor.
"""

from __future__ import annotations

import os

from thrifty.engines.base import WeightScheme
from thrifty.engines.machine import Machine

DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Features that multiply 8-bit integers and sum in 32 bits in one instruction: fast."""
EXACT_SUMS = DOT_PRODUCTS | {"asimd"}
"""Features with which such sums do not saturate: ARM's NEON widens products before it adds them."""
SATURATES = (
    "without 8-bit dot products (VNNI, AMX) the processor adds pairs of products in 16 bits, "
    "where they saturate, so that answers would be wrong"
)
"""Why static 8-bit activations need `EXACT_SUMS`. `vpmaddubsw` multiplies unsigned with signed
bytes and adds neighbours: 255 x 127 x 2 = 64,770 does not fit a signed 16-bit integer. See
"saturation issue" and `overflow_fix` in OpenVINO's and NNCF's documentation. Weights in 8 and 4
bits alone are not affected: without these features the engine multiplies them as floats.
"""
SCHEMES = {
    "none": WeightScheme(2.0),
    "int8": WeightScheme(1.04),
    # Its matrices take 8 bits and its table 16, which in small models is most of it.
    "w8a8": WeightScheme(1.5, EXACT_SUMS, SATURATES, "int8"),
    "int4": WeightScheme(0.6),
}

LIMIT_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_AVX2 = frozenset({"avx2"})
_AVX2_VNNI = _AVX2 | {"avx_vnni"}
_AVX512 = _AVX2 | {"avx512f"}
_AVX512_VNNI = _AVX512 | {"avx512_vnni"}
_AVX512_BF16 = _AVX512_VNNI | {"avx512_bf16", "avx_vnni"}
_LIMITS: dict[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2_VNNI,
    "AVX2_VNNI_2": _AVX2_VNNI,
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _AVX512_VNNI,
    "AVX512_CORE_BF16": _AVX512_BF16,
    "AVX512_CORE_FP16": _AVX512_BF16,
    "AVX10_1_512": _AVX512_BF16,
}
"""What oneDNN uses at most under each value of `ONEDNN_MAX_CPU_ISA`; others are no limit here."""


def find_features(machine: Machine) -> frozenset[str]:
    """The features of this processor that OpenVINO may use in processes started from this one."""
    limit = _LIMITS.get(os.environ.get(LIMIT_VARIABLE, "").upper())
    return machine.features if limit is None else machine.features & limit
