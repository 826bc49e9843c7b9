"""Whether this processor adds products of 8-bit integers without saturation, by trying it.

A processor's flags say what it should do; this says what it does, with the kernels that are here. A
replica of a model that depends on it tries it before it is ready.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as op

from thrifty.graphs.arithmetic import limit_properties

ROWS, COLUMNS = 16, 64
TOP = 127


def find_saturation() -> str | None:
    """Why static 8-bit activations would be computed wrongly here; None if they are right.

    All inputs and weights are as large as they can be, so that sums of two products need 17 bits.
    """
    x = op.parameter([1, -1, COLUMNS], ov.Type.f32)
    low, high = (op.constant(np.array(end, np.float32)) for end in (-TOP - 1, TOP))
    codes = np.full((ROWS, COLUMNS), TOP, np.int8)
    scales = op.constant(np.ones((ROWS, 1), np.float32))
    weights = op.multiply(op.convert(op.constant(codes), "f32"), scales)
    y = op.matmul(op.fake_quantize(x, low, high, low, high, 256), weights, False, True)
    properties = {"INFERENCE_PRECISION_HINT": "f32", **limit_properties()}
    compiled = ov.Core().compile_model(ov.Model([y], [x]), "CPU", properties)
    found = compiled({0: np.full((1, ROWS, COLUMNS), TOP, np.float32)})[0]
    expected = TOP * TOP * COLUMNS
    if np.allclose(found, expected, rtol=1e-3):
        return None
    return (
        f"this processor adds products of 8-bit integers wrongly: {float(found.min()):.0f} in place "
        f"of {expected}, as it saturates in 16 bits. Make the model anew on this machine, or serve "
        "its checkpoint with compress: int8"
    )
