"""What rounding lost, in part made good by a product of two thin matrices beside the rounded one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.compress.quantize.int4 import LowRank

FloatArray = npt.NDArray[np.float32]


def find_low_rank(weights: FloatArray, found: FloatArray, inputs: FloatArray, rank: int) -> LowRank:
    """The product of that rank which brings the outputs of `found` nearest to those of `weights`, both
    [rows, columns]. `inputs` is the mean of x x^T over what they are fed.
    """
    error = (weights - found).astype(np.float64)
    small = 1e-6 * float(np.mean(np.diag(inputs))) or 1.0
    root = np.linalg.cholesky(inputs.astype(np.float64) + small * np.eye(len(inputs)))
    felt = error @ root
    if len(felt) <= felt.shape[1]:
        left = np.linalg.eigh(felt @ felt.T)[1][:, ::-1][:, :rank]
    else:
        right = np.linalg.eigh(felt.T @ felt)[1][:, ::-1][:, :rank]
        left = np.linalg.qr(felt @ right)[0]
    right = left.T @ error
    # Both halves of a size, so that neither falls through the grid of 8 bits.
    size = np.sqrt(np.linalg.norm(right, axis=1) / np.sqrt(len(left)))
    size[size == 0] = 1
    return LowRank((left * size).astype(np.float32), (right / size[:, None]).astype(np.float32))
