"""Statistics of the inputs of a decoder's matrices over calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import openvino as ov

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.compress.mix import Text, as_mix, read_tokens
from thrifty.errors import CompressionError
from thrifty.evaluate.windows import TokenArray
from thrifty.graphs.decoder import TAP, build_decoder, make_inputs
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]


def read_calibration(
    text: Text, tokenizer: TextTokenizer, window: int, *, judged: int, learned: int
) -> tuple[list[TokenArray], list[TokenArray]]:
    """Windows of calibration text: some to compare candidates on, others to make them from.

    The former are at most `judged` tokens and a quarter of all, the latter at most `learned`
    tokens. Raises `CompressionError` if the text has fewer than two windows.
    """
    windows = list(read_tokens(text, tokenizer, window, judged + learned))
    if len(windows) < 2:
        raise CompressionError(
            f"{as_mix(text).name} is too short: it has {len(windows)} windows of {window} tokens, and at least "
            "two are needed, for calibration and for selection"
        )
    count = _count_windows(windows[: max(1, len(windows) // 4)], judged)
    rest = windows[count:]
    return windows[:count], rest[: _count_windows(rest, learned)]


def _count_windows(windows: Sequence[TokenArray], tokens: int) -> int:
    """How many of the first windows have at most so many tokens together; at least one."""
    ends = np.cumsum([len(window) for window in windows])
    return max(1, int(np.searchsorted(ends, tokens, side="right")))


def count_tokens(windows: Iterable[TokenArray]) -> int:
    """The total number of tokens."""
    return sum(len(tokens) for tokens in windows)


def collect_inputs(
    checkpoint: DecoderCheckpoint,
    windows: Sequence[TokenArray],
    on_progress: OnProgress = ignore_progress,
) -> dict[str, FloatArray]:
    """For each matrix of the decoder, by name: the mean of x x^T over its inputs x of all tokens.

    Matrices with the same input share one array.
    """
    count = count_tokens(windows)
    return _collect(checkpoint, windows, lambda x: x.T @ x, np.add, count, on_progress)


def collect_importance(
    checkpoint: DecoderCheckpoint,
    windows: Sequence[TokenArray],
    on_progress: OnProgress = ignore_progress,
) -> dict[str, FloatArray]:
    """For each matrix of the decoder, by name: the mean square of each of its inputs, [columns].

    It is the diagonal of the result of `collect_inputs`, in a fraction of the memory.
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
    """For each matrix of the decoder, by name: the largest magnitude of each input, [columns]."""
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
    """For each matrix: `measure` of its inputs [tokens, columns], merged over all windows in
    float64 and divided by `divisor`.
    """
    if not windows:
        raise CompressionError("the calibration text does not fill one window")
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
    """A decoder that outputs the input of each of its matrices."""

    def __init__(self, checkpoint: DecoderCheckpoint) -> None:
        model = build_decoder(checkpoint, "none", taps=True)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        self.first_of: dict[str, str] = {}
        """For each matrix, the first of those with the same input, under whose name it is
        output.
        """
        self._taps: dict[int, str] = {}
        for index, output in enumerate(self._request.get_compiled_model().outputs):
            names = sorted(n.removeprefix(TAP) for n in output.get_names() if n.startswith(TAP))
            if names:
                self._taps[index] = names[0]
                self.first_of |= dict.fromkeys(names, names[0])

    def __call__(self, tokens: TokenArray) -> dict[str, FloatArray]:
        """The inputs, [tokens, columns], by the first of the matrices with that input."""
        self._request.reset_state()
        self._request.infer(make_inputs(tokens))
        return {
            name: self._request.get_output_tensor(index).data.reshape(len(tokens), -1)
            for index, name in self._taps.items()
        }
