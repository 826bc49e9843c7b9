"""The same model on PyTorch and as the engine's graph makes the same predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engines.test_prepare import put
from thrifty.artifacts import Store
from thrifty.evaluate.open_model import open_model

pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.engine

TOKENS = np.array([(7 * i * i + 3 * i) % 250 for i in range(100)], dtype=np.int64)


def test_log_probabilities_and_answers_agree(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put(store)
    graph = open_model("tiny@v1", store, exact=True)
    torch = open_model("tiny@v1", store, exact=True, backend="torch")
    assert torch.vocab_size == graph.vocab_size
    assert torch.identity != graph.identity
    first, second = (scorer.rank(TOKENS, 8, [0, 50]) for scorer in (graph, torch))
    # The graph's weights are in 16 bits.
    np.testing.assert_allclose(first.target, second.target, atol=0.1)
    np.testing.assert_allclose(first.full, second.full, atol=0.2)
    assert (first.ids[:, 0] == second.ids[:, 0]).mean() > 0.95
    scored = torch.score(TOKENS, second.ids, [3])
    np.testing.assert_allclose(scored.logprobs, second.logprobs, atol=1e-4)
    np.testing.assert_array_equal(scored.top, second.ids[:, 0])
    answers = [list(scorer.generate(TOKENS[:20], 12)) for scorer in (graph, torch)]
    assert answers[0][:4] == answers[1][:4]
