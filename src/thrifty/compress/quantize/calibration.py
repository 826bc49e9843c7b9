"""What a model's matrices are fed with, over text that is not the text it is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.engines.openvino.decoder_graph import TAP, build_decoder
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray, read_texts
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

SHINGLE_WORDS = 13
"""So many words in a row, found in both, are taken for an overlap, as is usual in the field."""
MOST_OVERLAP = 0.001
"""The share of the evaluation text's shingles that calibration text may hold: set phrases do recur."""


def collect_inputs(
    checkpoint: DecoderCheckpoint,
    windows: Iterable[TokenArray],
    total: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, FloatArray]:
    """For each matrix of the decoder, by name: the mean of x x^T over all tokens, where x is what it is
    multiplied with. Matrices that are fed the same share one array.
    """
    model = build_decoder(checkpoint, "none", taps=True)
    request = ov.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    ).create_infer_request()  # fmt: skip
    taps = [
        (index, [name.removeprefix(TAP) for name in output.get_names() if name.startswith(TAP)])
        for index, output in enumerate(request.get_compiled_model().outputs)
    ]
    sums: dict[int, npt.NDArray[np.float64]] = {}
    count = 0
    for tokens in windows:
        request.reset_state()
        request.infer(_inputs(tokens))
        for index, names in taps:
            if names:
                x = request.get_output_tensor(index).data.reshape(len(tokens), -1)
                product = (x.T @ x).astype(np.float64)
                sums[index] = sums[index] + product if index in sums else product
        count += len(tokens)
        on_progress(Progress("calibrate", count, total, "tokens"))
    if not count:
        raise CompressionError("the calibration text has not even one window")
    found: dict[str, FloatArray] = {}
    for index, names in taps:
        if names:
            mean = (sums[index] / count).astype(np.float32)
            found |= dict.fromkeys(names, mean)
    return found


def _inputs(tokens: TokenArray) -> dict[str, Any]:
    count = len(tokens)
    return {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


def check_no_overlap(calibration: Path, evaluation: Path) -> None:
    """Raise where calibration text holds a part of the text that the result will be judged by."""
    held_out = set(_shingles(evaluation))
    if not held_out:
        return
    seen = {shingle for shingle in _shingles(calibration) if shingle in held_out}
    if len(seen) > MOST_OVERLAP * len(held_out):
        raise CompressionError(
            f"{calibration} holds {len(seen) / len(held_out):.1%} of {evaluation} (rows of "
            f"{SHINGLE_WORDS} words), so figures on the latter would flatter; take other text to "
            "calibrate with"
        )


def _shingles(path: Path) -> Iterator[bytes]:
    words: list[str] = []
    for text in read_texts(path):
        words = words[-(SHINGLE_WORDS - 1) :] + text.lower().split()
        for start in range(len(words) - SHINGLE_WORDS + 1):
            joined = " ".join(words[start : start + SHINGLE_WORDS])
            yield hashlib.blake2b(joined.encode(), digest_size=8).digest()
