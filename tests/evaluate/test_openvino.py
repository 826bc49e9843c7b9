"""Evaluation of the served graphs: against logits computed plainly, and through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.test_prepare import MODEL, put
from tests.evaluate.bigram import write_text
from tests.graphs.test_decoder import compute_logits
from thrifty.artifacts import Store
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.errors import EvaluationError, ThriftyError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.open_model import open_model
from thrifty.evaluate.tasks import log_likelihood
from thrifty.types import ignore_progress

pytestmark = pytest.mark.engine

TOKENS = np.array([(7 * i * i + 3 * i) % 250 for i in range(120)], dtype=np.int64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one checkpoint, `tiny`, also in 8 bits."""
    store = Store(tmp_path_factory.mktemp("evaluated") / "models")
    made = put(store)
    prepare_model(store, *made, "int8", ignore_progress)
    return store


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_log_probabilities_are_the_models(store: Store) -> None:
    scorer = open_model("tiny", store, exact=True)
    expected = log_softmax(compute_logits(MODEL, TOKENS.tolist()).astype(np.float64))[:-1]
    ranked = scorer.rank(TOKENS, 10, [0, 50])
    # Weights are stored in 16 bits.
    np.testing.assert_allclose(
        ranked.logprobs, np.take_along_axis(expected, ranked.ids, 1), atol=0.05
    )
    np.testing.assert_allclose(
        ranked.target, expected[np.arange(len(expected)), TOKENS[1:]], atol=0.05
    )
    np.testing.assert_allclose(ranked.full, expected[[0, 50]], atol=0.05)
    assert (np.diff(ranked.logprobs, axis=1) <= 0).all()
    scored = scorer.score(TOKENS, ranked.ids, [3])
    np.testing.assert_allclose(scored.logprobs, ranked.logprobs, atol=1e-4)
    assert (scored.top == ranked.ids[:, 0]).mean() > 0.98
    np.testing.assert_allclose(scored.full, expected[[3]], atol=0.05)
    # A pass does not affect the next.
    again = scorer.score(TOKENS, ranked.ids)
    assert (again.logprobs == scored.logprobs).all()
    scorer.close()


def test_generation_is_greedy_and_goes_on_from_its_past(store: Store) -> None:
    scorer = open_model("tiny", store, exact=True)
    written = list(scorer.generate(TOKENS[:40], 8))
    assert 1 <= len(written) <= 8
    tokens = TOKENS[:40].tolist()
    for token in written:
        step = scorer.score(np.array([*tokens, 0]), np.zeros((len(tokens), 1), np.int64))
        assert int(step.top[-1]) == token
        tokens.append(token)
    scorer.close()


def test_log_likelihood_of_a_continuation(store: Store) -> None:
    scorer = open_model("tiny", store, exact=True)
    tokens = list(b"A context: and more")
    expected = log_softmax(compute_logits(MODEL, tokens).astype(np.float64))
    by_hand = sum(expected[i - 1, tokens[i]] for i in range(10, len(tokens)))
    assert log_likelihood(scorer, "A context:", " and more")[0] == pytest.approx(by_hand, abs=0.1)
    scorer.close()


def test_evaluation_tells_what_eight_bits_cost(store: Store, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 4000)
    task = tmp_path / "letters.jsonl"
    items = [
        {"context": f"Letter {i}:", "choices": [" a", " b"], "answer": i % 2} for i in range(20)
    ]
    task.write_text("".join(json.dumps(item) + "\n" for item in items))
    steps: list[str] = []
    found = evaluate(
        "tiny-int8-openvino",
        "tiny",
        EvaluationOptions(text=text, tasks=[task], window=128),
        store=store,
        folder=tmp_path / "e",
        on_progress=lambda step: steps.append(step.step),
    )
    measured = found.divergence
    assert measured is not None
    assert 0 < measured.kl_divergence.mean < 0.1
    assert measured.same_top_token > 0.8
    assert (measured.windows, measured.tokens) == (32, 4050 - 32), "all but the first of each"
    assert {"reference", "evaluate", "answer"} <= set(steps)
    told = found.as_dict()
    assert told["kl_divergence"]["mean"] == measured.kl_divergence.mean
    assert set(told["tasks"]["letters"]) >= {
        "score",
        "low",
        "high",
        "reference",
        "difference",
        "flips",
    }
    json.dumps(told)
    # The second time, nothing runs.
    steps.clear()
    again = evaluate(
        "tiny-int8-openvino",
        "tiny",
        EvaluationOptions(text=text, tasks=[task], window=128),
        store=store,
        folder=tmp_path / "e",
        on_progress=lambda step: steps.append(step.step),
    )
    assert again == found
    assert steps == []


def test_tokenizers_must_be_the_same(store: Store, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    other = Tokenizer(models.WordLevel({f"w{i}": i for i in range(257)}, unk_token="w0"))
    put_other = put(store, tokenizer=other)
    text = write_text(tmp_path / "text.txt", 500)
    with pytest.raises(EvaluationError, match="different tokenizers"):
        evaluate(
            f"tiny@v{put_other[0].version}",
            "tiny@v1",
            EvaluationOptions(text=text, window=64),
            store=store,
            folder=tmp_path / "e",
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "name a domain, a text or a task"),
        ({"window": 1}, "at least two tokens"),
        ({"window": 400}, "accepts 256 tokens"),
        ({"model": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"model": "nobody"}, "nobody"),
        ({"backend": "torch"}, "PyTorch"),
    ],
)
def test_what_cannot_be_evaluated_is_told_of(
    store: Store, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = changes.pop("model", "tiny-int8-openvino")
    text = write_text(tmp_path / "text.txt", 500)
    options = EvaluationOptions(**{"window": 64, "text": text, **changes})
    with pytest.raises(ThriftyError, match=message):
        evaluate(model, "tiny@v1", options, store=store, folder=tmp_path / "e")


# the largest logits
