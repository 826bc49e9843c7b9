"""What OpenVINO computes with: groups of activations, and the processor's instructions.

Imports no OpenVINO. Its kernels come from oneDNN, which `ONEDNN_MAX_CPU_ISA` limits to older
instruction sets than the processor has. Tests run below the machine's own level with it, so what
counts everywhere is what the variable leaves of the processor.
"""

from __future__ import annotations

import hashlib
import os

ACTIVATION_GROUP = 64
"""How many activations share a scale when they are multiplied with 8-bit or 4-bit weights. Smaller
groups are more accurate, larger ones faster; the engine's own default is 32.
"""
LEAST_ACTIVATION_GROUP = 32
"""The smallest group that the engine's kernels support."""

LIMIT_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_AVX2 = frozenset({"avx2"})
_AVX2_VNNI = _AVX2 | {"avx_vnni"}
_AVX512 = _AVX2 | {"avx512f"}
_AVX512_VNNI = _AVX512 | {"avx512_vnni"}
_AVX512_BF16 = _AVX512_VNNI | {"avx512_bf16", "avx_vnni"}
LIMITS: dict[str, frozenset[str]] = {
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2_VNNI,
    "AVX2_VNNI_2": _AVX2_VNNI,
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _AVX512_VNNI,
    "AVX512_CORE_BF16": _AVX512_BF16,
    "AVX512_CORE_FP16": _AVX512_BF16,
    "AVX10_1_512": _AVX512_BF16,
}
"""The most that oneDNN uses under each value of the variable; any other value limits nothing here.
"""
DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Features that multiply 8-bit integers and add the products in 32 bits in one instruction."""
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def find_limit() -> str | None:
    """The level that OpenVINO is limited to, if it is."""
    level = os.environ.get(LIMIT_VARIABLE, "").upper()
    return level if level in LIMITS else None


def limit_features(features: frozenset[str]) -> frozenset[str]:
    """Those of a processor's `features` that OpenVINO may use in this process and its children."""
    limit = find_limit()
    return features if limit is None else features & LIMITS[limit]


def digest_features(features: frozenset[str]) -> str:
    """A short name of a set of features, for what is kept by them."""
    return hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:8]


def limit_properties() -> dict[str, str]:
    """Properties that every graph is compiled with last, so that a limit holds for all of OpenVINO.

    Its plugin chooses bfloat16 and 8-bit activations by the processor, not by the limit, and then
    finds no kernels for them. A processor at that level would have float32 and floats instead.
    """
    limit = find_limit()
    if limit is None:
        return {}
    found = {}
    if not LIMITS[limit] & _BFLOAT16:
        found["INFERENCE_PRECISION_HINT"] = "f32"
    if not LIMITS[limit] & DOT_PRODUCTS:
        found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    return found


REFERENCE_PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "LP_TRANSFORMS_MODE": "NO",
}
"""Properties under which a graph gives the same numbers on every processor, but for the rounding of
float32: weights become floats, and static 8-bit activations are rounded but multiplied as floats.
"""
