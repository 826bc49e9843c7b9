"""Divergence from a recorded reference: exact if everything is known, never too large,
resumable.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.bigram import VOCAB, Bigram, divergence, write_text
from thrifty.errors import EvaluationError
from thrifty.evaluate.divergence import RESULT, coarse_divergence, measure_divergence
from thrifty.evaluate.reference import (
    EXACT_COUNT,
    EXACT_EVERY,
    ReferenceRecord,
    count_exact,
    exact_rows,
    record_type,
)
from thrifty.evaluate.run import record_reference
from thrifty.evaluate.scorer import TopTokens
from thrifty.evaluate.windows import TokenArray, read_windows

REFERENCE = Bigram(0, label="reference")


def keep(folder: Path, text: Path, **changes: object) -> ReferenceRecord:
    return record_reference(REFERENCE, text, folder, **{"window": 100, "top_k": 20, **changes})  # type: ignore[arg-type]


def all_tokens(record: ReferenceRecord) -> list[TokenArray]:
    return [window.tokens for window in record.read()]


def test_a_record_gives_back_what_was_put_in(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 1050)
    record = keep(tmp_path / "e", text)
    windows = list(record.read())
    expected = list(read_windows(text, REFERENCE.tokenizer, 100))
    assert [w.number for w in windows] == list(range(len(expected)))
    assert record.predictions == sum(len(tokens) - 1 for tokens in expected)
    for window, tokens in zip(windows, expected, strict=True):
        assert (window.tokens == tokens).all()
        full = REFERENCE.table[tokens[:-1]]
        assert (window.ids == np.argsort(-full, axis=1, kind="stable")[:, :20]).all()
        kept = np.take_along_axis(full, window.ids, 1)
        np.testing.assert_allclose(window.logprobs, kept, atol=1 / 4096 + 1e-6)
        np.testing.assert_allclose(window.tail, 1 - np.exp(kept).sum(axis=1), atol=1e-5)
        np.testing.assert_allclose(
            window.target, full[np.arange(len(tokens) - 1), tokens[1:]], atol=1e-5
        )
        np.testing.assert_allclose(window.exact, full[window.exact_rows], atol=0.01)
    # Also from the middle.
    assert (next(record.read(5)).tokens == expected[5]).all()
    assert (next(record.read(5)).target == windows[5].target).all()


def test_with_everything_kept_the_divergence_is_the_true_one(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 5000)
    record = keep(tmp_path / "e", text, top_k=VOCAB)
    other = Bigram(1, 0.3)
    found = measure_divergence(other, record, tmp_path / "r.bin")
    true = np.concatenate([divergence(REFERENCE, other, t) for t in all_tokens(record)])
    assert found.kl_divergence.mean == pytest.approx(true.mean(), rel=1e-3)
    assert found.kl_divergence.median == pytest.approx(np.median(true), rel=1e-2)
    assert found.kl_divergence.p99 == pytest.approx(np.quantile(true, 0.99), rel=1e-2)
    assert abs(found.truncation) < 1e-3 * true.mean()
    assert found.tokens == len(true)


def test_what_is_not_kept_makes_it_smaller_and_by_how_much_is_told(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 20_000)
    other = Bigram(1, 0.5)
    before = 0.0
    for k in (1, 8, 64):
        record = keep(tmp_path / "e", text, top_k=k)
        found = measure_divergence(other, record, tmp_path / f"{k}.bin")
        true = np.concatenate([divergence(REFERENCE, other, t) for t in all_tokens(record)]).mean()
        assert before < found.kl_divergence.mean < true
        lacks = true - found.kl_divergence.mean
        assert found.truncation == pytest.approx(lacks, rel=0.15)
        assert found.truncation_tokens == EXACT_COUNT
        before = found.kl_divergence.mean


def test_a_model_diverges_from_itself_by_nothing(tmp_path: Path) -> None:
    record = keep(tmp_path / "e", write_text(tmp_path / "text.txt", 3000))
    found = measure_divergence(REFERENCE, record, tmp_path / "r.bin")
    assert found.kl_divergence.mean < 1e-6
    assert found.same_top_token == 1
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-6)
    assert found.perplexity_ratio == pytest.approx(1, abs=1e-6)
    assert found.probability_change.rms < 1e-6


def test_perplexities_are_those_of_the_text(tmp_path: Path) -> None:
    record = keep(tmp_path / "e", write_text(tmp_path / "text.txt", 4000))
    other = Bigram(2, 0.4)
    found = measure_divergence(other, record, tmp_path / "r.bin")
    for model, perplexity in ((REFERENCE, found.reference_perplexity), (other, found.perplexity)):
        right = [model.table[t[:-1], t[1:]] for t in all_tokens(record)]
        assert perplexity == pytest.approx(np.exp(-np.concatenate(right).mean()), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(found.perplexity / found.reference_perplexity)


def test_tokens_that_a_candidate_does_not_tell_count_as_the_rest() -> None:
    p = np.log(np.array([[0.5, 0.2, 0.1]], np.float32))
    q = np.log(np.array([[0.4, 0.3, 0.1]], np.float32))
    tail = np.array([0.2], np.float32)
    unknown = q.copy()
    unknown[0, 2] = np.nan
    whole = 0.5 * np.log(0.5 / 0.4) + 0.2 * np.log(0.2 / 0.3) + 0.0 + 0.2 * np.log(0.2 / 0.2)
    merged = 0.5 * np.log(0.5 / 0.4) + 0.2 * np.log(0.2 / 0.3) + 0.3 * np.log(0.3 / 0.3)
    assert coarse_divergence(p, tail, q)[0] == pytest.approx(whole, abs=1e-6)
    assert coarse_divergence(p, tail, unknown)[0] == pytest.approx(merged, abs=1e-6)
    nothing = np.full_like(q, np.nan)
    assert coarse_divergence(p, tail, nothing)[0] == pytest.approx(0, abs=1e-6)


def test_a_reference_that_was_kept_is_not_run_again(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 2000)
    keep(tmp_path / "e", text)
    passes = REFERENCE.passes
    record = keep(tmp_path / "e", text)
    assert REFERENCE.passes == passes
    assert record.complete
    # The same text at another path is the same; other text, window or length is not.
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    assert keep(tmp_path / "e", copy).folder == record.folder
    others = {
        keep(tmp_path / "e", text, window=50).folder,
        keep(tmp_path / "e", text, top_k=10).folder,
        keep(tmp_path / "e", text, max_tokens=500).folder,
        keep(tmp_path / "e", write_text(tmp_path / "other.txt", 2000, seed=2)).folder,
    }
    assert len(others | {record.folder}) == 5


class Killed(Exception):
    pass


class Dies(Bigram):
    """Fails in its pass number `after`."""

    def __init__(self, after: int, seed: int = 0, noise: float = 0.0) -> None:
        super().__init__(seed, noise, "reference" if not noise else "bigram")
        self.after = after

    def _look_up(self, tokens: TokenArray):  # type: ignore[no-untyped-def]
        if self.passes >= self.after:
            raise Killed
        return super()._look_up(tokens)


@pytest.mark.parametrize("torn", [0, 1, 7])
def test_a_broken_off_reference_goes_on_where_it_was(tmp_path: Path, torn: int) -> None:
    text = write_text(tmp_path / "text.txt", 3000)
    whole = keep(tmp_path / "whole", text)
    dies = Dies(11)
    with pytest.raises(Killed):
        record_reference(dies, text, tmp_path / "e", window=100, top_k=20)
    (folder,) = (tmp_path / "e" / "references").iterdir()
    for name in ("records.bin", "tokens.bin", "exact.bin"):
        with (folder / name).open("ab") as file:
            file.write(b"x" * torn)
    again = Bigram(0, label="reference")
    record = record_reference(again, text, tmp_path / "e", window=100, top_k=20)
    assert again.passes == whole.windows - 11
    for name in ("records.bin", "tokens.bin", "exact.bin", "windows.bin"):
        assert (record.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("torn", [0, 1, RESULT.itemsize * 3])
def test_a_broken_off_candidate_goes_on_where_it_was(tmp_path: Path, torn: int) -> None:
    record = keep(tmp_path / "e", write_text(tmp_path / "text.txt", 3000))
    other = Bigram(1, 0.3)
    whole = measure_divergence(other, record, tmp_path / "whole.bin")
    with pytest.raises(Killed):
        measure_divergence(Dies(9, 1, 0.3), record, tmp_path / "r.bin")
    with (tmp_path / "r.bin").open("ab") as file:
        file.write(b"\xff" * torn)
    again = Bigram(1, 0.3)
    assert measure_divergence(again, record, tmp_path / "r.bin") == whole
    assert again.passes == record.windows - 9
    # If everything was measured, nothing runs.
    assert measure_divergence(again, record, tmp_path / "r.bin") == whole
    assert again.passes == record.windows - 9


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    record = keep(tmp_path / "e", write_text(tmp_path / "text.txt", 500))
    with pytest.raises(EvaluationError, match="another reference"):
        ReferenceRecord(record.folder, replace(record.meta, k=5))


def test_a_damaged_record_is_told_of(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 900)
    record = keep(tmp_path / "e", text)
    (record.folder / "complete").unlink()
    (record.folder / "records.bin").write_bytes(b"short")
    with pytest.raises(EvaluationError, match="damaged"):
        keep(tmp_path / "e", text)


class Broken(Bigram):
    """A model with damaged weights."""

    def rank(self, tokens: TokenArray, k: int, rows: object) -> TopTokens:
        ranked = super().rank(tokens, k, [])
        ranked.target[3] = np.nan
        return ranked

    def _look_up(self, tokens: TokenArray):  # type: ignore[no-untyped-def]
        found = super()._look_up(tokens)
        found[5] = np.nan
        return found


def test_numbers_that_are_none_are_an_error_that_names_the_model(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 500)
    with pytest.raises(
        EvaluationError, match="broken computes log-probabilities that are not finite"
    ):
        record_reference(Broken(0, label="broken"), text, tmp_path / "b", window=100)
    with pytest.raises(EvaluationError, match="in window 0"):
        measure_divergence(
            Broken(0, label="broken"), keep(tmp_path / "e", text), tmp_path / "r.bin"
        )


def test_a_text_too_long_for_the_disk_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    text = write_text(tmp_path / "text.txt", 5000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    passes = REFERENCE.passes
    with pytest.raises(EvaluationError, match="free some space, or use fewer --tokens"):
        keep(tmp_path / "e", text)
    assert REFERENCE.passes == passes


def test_a_window_longer_than_the_models_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="accepts 4096 tokens"):
        keep(tmp_path / "e", write_text(tmp_path / "text.txt", 500), window=5000)


def test_some_predictions_are_kept_whole_and_not_too_many() -> None:
    for size in (10, 64, 100, 511):
        taken, before = [], 0
        while before < EXACT_EVERY * (EXACT_COUNT + 5):
            rows = exact_rows(before, size)
            assert count_exact(before) == len(taken)
            taken += [before + row for row in rows]
            before += size
        assert taken == list(range(0, EXACT_EVERY * EXACT_COUNT, EXACT_EVERY))


def test_a_record_is_as_small_as_it_says() -> None:
    assert record_type(49_152, 64).itemsize == 264
    assert record_type(128_256, 64).itemsize == 392


def test_what_is_kept_can_be_read_by_others(tmp_path: Path) -> None:
    record = keep(tmp_path / "e", write_text(tmp_path / "text.txt", 500))
    meta = json.loads((record.folder / "meta.json").read_text())
    assert (meta["k"], meta["window"], meta["label"]) == (20, 100, "reference")
