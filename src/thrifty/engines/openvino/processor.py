"""Which processor features OpenVINO uses, and what its forms of weights need of them."""

from __future__ import annotations

from thrifty.artifacts import Artifact
from thrifty.engines.base import SchemeDefault, WeightScheme, find_scheme_fault
from thrifty.engines.machine import Machine
from thrifty.graphs.arithmetic import DOT_PRODUCTS, limit_features
from thrifty.types import Format

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
    "w8a8": WeightScheme(1.5, EXACT_SUMS, SATURATES, "w7a8"),
    "w7a8": WeightScheme(1.5),
    "int4": WeightScheme(0.6),
}


AUTO_SCHEMES = ("int8", "none")
"""What `compress: auto` chooses from unasked."""
LOSSY_SCHEMES = ("int4",)
"""What it takes only where the spec accepts that: 4 bits can cost much quality."""


def find_features(machine: Machine) -> frozenset[str]:
    """The features of this processor that OpenVINO may use in processes started from this one."""
    return limit_features(machine.features)


def find_processor_fault(artifact: Artifact, machine: Machine) -> str | None:
    """Why a prepared model would be computed wrongly on `machine`, and what to do; None if not."""
    if artifact.description.format is not Format.OPENVINO:
        return None
    weights = artifact.description.weights or ""
    fault = find_scheme_fault(SCHEMES, weights, find_features(machine))
    if fault is None:
        return None
    return (
        f"{fault}. Make it anew on this machine from its checkpoint (thrifty quantize CHECKPOINT "
        f"--scheme {weights}), which then takes {SCHEMES[weights].fallback}, or serve the "
        "checkpoint with compress: int8"
    )


def describe_speed(machine: Machine) -> str:
    """What weights of few bits gain on such a processor, as far as measurements elsewhere tell."""
    if DOT_PRODUCTS & find_features(machine):
        return "on processors with 8-bit dot products usually faster than 16 bits at every load"
    return (
        "on processors without 8-bit dot products, as this one, usually faster than 16 bits with "
        "few streams and no faster under load"
    )


def find_default_scheme(machine: Machine) -> SchemeDefault:
    """8 bits on every processor: they take half the memory, cost little quality, and are faster with
    few streams everywhere. What else is known of their speed depends on the processor.
    """
    return SchemeDefault("int8", f"not measured here; {describe_speed(machine)}")
