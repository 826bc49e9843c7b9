"""Statistics of the inputs of a decoder's matrices over calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov

from thrifty.artifacts.checkpoint import DecoderCheckpoint
from thrifty.data.overlap import SEQUENCE_WORDS, hash_sequences, list_sequences, list_words
from thrifty.errors import CompressionError
from thrifty.evaluate.conversations import read_records
from thrifty.evaluate.windows import TokenArray, read_texts, read_windows
from thrifty.graphs.decoder import TAP, build_decoder, make_inputs
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

MOST_OVERLAP = 0.001
"""The share of the evaluation text's sequences that may recur by chance, as set phrases do."""
MOST_ROWS = 3
"""The most rows that an error names."""


def read_calibration(
    path: Path, tokenizer: TextTokenizer, window: int, *, judged: int, learned: int
) -> tuple[list[TokenArray], list[TokenArray]]:
    """Windows of calibration text: some to compare candidates on, others to make them from.

    The former are at most `judged` tokens and a quarter of all, the latter at most `learned`
    tokens. Raises `CompressionError` if the text has fewer than two windows.
    """
    windows = list(read_windows(path, tokenizer, window, judged + learned))
    if len(windows) < 2:
        raise CompressionError(
            f"{path} is too short: it has {len(windows)} windows of {window} tokens, and at least "
            "two are needed, for calibration and for selection"
        )
    count = min(max(1, judged // window), max(1, len(windows) // 4))
    return windows[:count], windows[count : count + max(1, learned // window)]


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


def check_no_overlap(calibration: Path, *evaluations: Path) -> None:
    """Raise `CompressionError` if the calibration text contains parts of an evaluation text."""
    held_out = [dict(_list_sequences(path)) for path in evaluations]
    seen: list[dict[bytes, str]] = [{} for _ in evaluations]
    for sequence, where in _list_sequences(calibration):
        for number, known in enumerate(held_out):
            if sequence in known:
                seen[number].setdefault(sequence, where)
    for path, known, found in zip(evaluations, held_out, seen, strict=True):
        if len(found) > MOST_OVERLAP * len(known):
            raise CompressionError(
                f"{calibration} contains {len(found) / len(known):.1%} of {path} (sequences of "
                f"{SEQUENCE_WORDS} words{_describe_rows(found, known)}), so measurements on the "
                "latter would be too good; calibrate with other text"
            )


def _describe_rows(found: Mapping[bytes, str], known: Mapping[bytes, str]) -> str:
    pairs = dict.fromkeys(
        (there, known[one]) for one, there in found.items() if there and known[one]
    )
    shown = [f"line {there} has what line {here} of the latter has" for there, here in pairs]
    return f"; {'; '.join(shown[:MOST_ROWS])}" if shown else ""


def _list_sequences(path: Path) -> Iterator[tuple[bytes, str]]:
    """A checksum of each sequence of words, and the line where it stands in a `.jsonl` file."""
    if path.suffix == ".jsonl":
        for record, where in read_records(path):
            line = where.rpartition(" ")[2]
            yield from ((sequence, line) for sequence in list_sequences(record))
        return
    words: list[str] = []
    for text in read_texts(path):
        words = words[-(SEQUENCE_WORDS - 1) :] + list_words(text)
        yield from ((sequence, "") for sequence in hash_sequences(words))
