"""A candidate over a KV cache as served: the same results, and the cost of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Store
from thrifty.errors import EvaluationError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.open_model import open_model
from thrifty.evaluate.openvino_scorer import OpenVinoScorer
from thrifty.graphs.decoder import make_inputs

pytestmark = pytest.mark.engine

TOKENS = np.array([(7 * i * i + 3 * i) % 250 for i in range(150)], dtype=np.int64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("paged") / "models")
    put(store)
    return store


def test_logits_are_those_of_whole_windows_but_for_rounding(store: Store) -> None:
    import openvino as ov

    from thrifty.graphs.paged import PagedModel

    scorer = open_model("tiny", store)
    assert isinstance(scorer, OpenVinoScorer)
    folder = store.folder_of(scorer.identity.partition("+")[0])
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    graph = ov.Core().read_model(folder / "openvino_model.xml")
    request = ov.Core().compile_model(graph, "CPU", exact).create_infer_request()
    request.infer(make_inputs(TOKENS))
    whole = request.get_tensor("logits").data[0].copy()
    errors = {}
    for precision in ("f16", "u8"):
        model = PagedModel(ov.Core().read_model(folder / "openvino_model.xml"), precision, exact)
        found = model.infer(TOKENS, 0).copy()
        errors[precision] = float(np.abs(found - whole).mean())
        # In two parts; the second needs more pages.
        fresh = PagedModel(ov.Core().read_model(folder / "openvino_model.xml"), precision, exact)
        fresh.infer(TOKENS[:32], 0)
        parts = fresh.infer(TOKENS[32:], 32).copy()
        np.testing.assert_allclose(parts, found[32:], atol=1e-3)
        # On pages in another order, and only the last row.
        pages = [5, 0, 3, 1, 4]
        apart = fresh.infer(TOKENS, 0, pages)
        np.testing.assert_allclose(apart, found, atol=1e-3)
        apart = fresh.infer(TOKENS[140:], 140, pages, only_last=True)
        assert apart.shape == (1, found.shape[1])
    size = float(np.abs(whole).mean())
    assert errors["f16"] < 0.002 * size
    assert errors["f16"] < errors["u8"] < 0.1 * size


def test_last_token_does_not_change_what_is_predicted_before_it(store: Store) -> None:
    """In an 8-bit cache the keys of a block share scales."""
    scorer = open_model("tiny", store, kv_precision="u8")
    for length in (40, 65):
        ids = np.repeat(TOKENS[1:length, None], 2, axis=1)
        ids[-1] = 7, 201
        ends = [np.append(TOKENS[: length - 1], last) for last in (7, 201)]
        together = scorer.score(ends[0], ids).logprobs
        for column, tokens in enumerate(ends):
            alone = scorer.score(tokens, ids[:, [column]]).logprobs
            np.testing.assert_array_equal(alone[:, 0], together[:, column])


def test_it_is_a_candidate_of_its_own(store: Store, tmp_path: Path) -> None:
    text = write_text(tmp_path / "held.txt", 3000)
    found = {}
    for precision in (None, "f16", "u8"):
        divergence = evaluate(
            "tiny",
            "tiny",
            EvaluationOptions(text=text, window=128, kv_precision=precision),
            store=store,
            folder=tmp_path / "e",
        ).divergence
        assert divergence is not None
        found[precision] = divergence.kl_divergence.mean
    assert len(list((tmp_path / "e").glob("**/candidates/*.bin"))) == 3, "recorded separately"
    # In 16 bits the cache costs little beside bfloat16, and nothing where that is its form anyway.
    # On a processor that computes in float32 all that is left is the cache's own rounding.
    assert abs(found["f16"] - found[None]) < 0.3 * found[None] + 1e-4
    assert found["f16"] < found["u8"] < 1


def test_it_writes_what_it_writes_over_whole_windows(store: Store) -> None:
    written = [
        list(open_model("tiny", store, kv_precision=precision).generate(TOKENS[:70], 10))
        for precision in (None, "f16")
    ]
    assert written[0][:3] == written[1][:3]
    assert len(written[1]) == 10


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("tiny", {"kv_precision": "u4"}, "is u8 or f16, not 'u4'"),
        ("tiny", {"kv_precision": "u8", "backend": "torch"}, "models that OpenVINO runs"),
        ("http://127.0.0.1:9/v1", {"kv_precision": "u8"}, "servers and PyTorch have their own"),
    ],
)
def test_what_has_no_choice_is_refused(
    store: Store, tmp_path: Path, model: str, changes: dict[str, str], message: str
) -> None:
    text = write_text(tmp_path / "held.txt", 3000)
    options = EvaluationOptions(text=text, **changes)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=message):
        evaluate(model, "tiny", options, store=store, folder=tmp_path)
