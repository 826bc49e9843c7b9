"""What a model's matrices are fed with, over text that is not the text it is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray, read_texts, read_windows
from thrifty.graphs.decoder import TAP, build_decoder, make_inputs
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

SHINGLE_WORDS = 13
"""So many words in a row, found in both, are taken for an overlap, as is usual in the field."""
MOST_OVERLAP = 0.001
"""The share of the evaluation text's shingles that calibration text may hold: set phrases do recur."""


def read_calibration(
    path: Path, tokenizer: TextTokenizer, window: int, *, judged: int, learned: int
) -> tuple[list[TokenArray], list[TokenArray]]:
    """Windows of calibration text: some to choose by among what was made, at most `judged` tokens and a
    quarter of all, and behind them others to make it with, at most `learned` tokens. Raises
    `CompressionError` where there are not two.
    """
    windows = list(read_windows(path, tokenizer, window, judged + learned))
    if len(windows) < 2:
        raise CompressionError(
            f"{path} is too short: it has {len(windows)} windows of {window} tokens, and one is needed to "
            "learn from and another to choose by"
        )
    count = min(max(1, judged // window), max(1, len(windows) // 4))
    return windows[:count], windows[count:]


def count_tokens(windows: Iterable[TokenArray]) -> int:
    """Of all of them."""
    return sum(len(tokens) for tokens in windows)


def collect_inputs(
    checkpoint: DecoderCheckpoint,
    windows: Sequence[TokenArray],
    on_progress: OnProgress = ignore_progress,
) -> dict[str, FloatArray]:
    """For each matrix of the decoder, by name: the mean of x x^T over all tokens, where x is what it is
    multiplied with. Matrices that are fed the same share one array.
    """
    count = count_tokens(windows)
    return _collect(checkpoint, windows, lambda x: x.T @ x, np.add, count, on_progress)


def collect_importance(
    checkpoint: DecoderCheckpoint,
    windows: Sequence[TokenArray],
    on_progress: OnProgress = ignore_progress,
) -> dict[str, FloatArray]:
    """For each matrix of the decoder, by name: the mean square of what each of its columns is multiplied
    with, [columns]. It is the diagonal of what `collect_inputs` finds, in a fraction of the memory.
    """
    count = count_tokens(windows)
    return _collect(
        checkpoint, windows, lambda x: np.einsum("ij,ij->j", x, x), np.add, count, on_progress
    )


def collect_largest(
    checkpoint: DecoderCheckpoint,
    windows: Sequence[TokenArray],
    on_progress: OnProgress = ignore_progress,
) -> dict[str, FloatArray]:
    """The same of the largest magnitude that each column is multiplied with, [columns]."""
    return _collect(
        checkpoint, windows, lambda x: np.abs(x).max(axis=0), np.maximum, 1, on_progress
    )


def _collect(
    checkpoint: DecoderCheckpoint,
    windows: Sequence[TokenArray],
    measure: Callable[[FloatArray], FloatArray],
    merge: np.ufunc,
    divisor: int,
    on_progress: OnProgress,
) -> dict[str, FloatArray]:
    """What is measured of each matrix's inputs ([tokens, columns]), merged over all windows in float64, over
    `divisor`.
    """
    if not windows:
        raise CompressionError("the calibration text has not even one window")
    found: dict[str, npt.NDArray[np.float64]] = {}
    count, total = 0, count_tokens(windows)
    run = TapRun(checkpoint)
    for tokens in windows:
        for first, x in run(tokens).items():
            new = measure(x).astype(np.float64)
            found[first] = merge(found[first], new) if first in found else new
        count += len(tokens)
        on_progress(Progress("calibrate", count, total, "tokens"))
    merged = {first: (values / divisor).astype(np.float32) for first, values in found.items()}
    return {name: merged[first] for name, first in run.first_of.items()}


class TapRun:
    """A decoder that tells what each of its matrices is multiplied with."""

    def __init__(self, checkpoint: DecoderCheckpoint) -> None:
        model = build_decoder(checkpoint, "none", taps=True)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        self.first_of: dict[str, str] = {}
        """For each matrix, the one by which its input is told: several are fed the same."""
        self._taps: dict[int, str] = {}
        for index, output in enumerate(self._request.get_compiled_model().outputs):
            names = sorted(n.removeprefix(TAP) for n in output.get_names() if n.startswith(TAP))
            if names:
                self._taps[index] = names[0]
                self.first_of |= dict.fromkeys(names, names[0])

    def __call__(self, tokens: TokenArray) -> dict[str, FloatArray]:
        """The inputs, [tokens, columns], by the first of the matrices that are fed them."""
        self._request.reset_state()
        self._request.infer(make_inputs(tokens))
        return {
            name: self._request.get_output_tensor(index).data.reshape(len(tokens), -1)
            for index, name in self._taps.items()
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
