"""The pipeline's distillation stage, if PyTorch is installed."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tests.compress.test_pipeline import MODEL, PRUNE
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Store
from thrifty.compress.pipeline import run_pipeline
from thrifty.home import Home
from thrifty.spec.compress import CompressSpec, DistillSpec, Divergence

settings = pytest.importorskip("thrifty.compress.distill.settings")


def test_the_spec_knows_the_divergences_and_settings_that_training_knows() -> None:
    assert get_args(Divergence) == settings.DIVERGENCES
    known = set(settings.Training.__dataclass_fields__)
    assert set(DistillSpec.model_fields) - {"teacher", "time"} <= known


@pytest.mark.engine
def test_a_pruned_model_is_trained_by_the_whole_one_and_quantized(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    home = Home(tmp_path)
    store = Store(home.models)
    source = put(store, MODEL)
    compress = CompressSpec.model_validate(
        {
            "prune": PRUNE, "distill": {"tokens": 12_000, "batch_tokens": 1024, "learning_rate": 3e-3},
            "text": str(write_text(tmp_path / "learned.txt", 30_000, seed=5)),
            "held_out": str(write_text(tmp_path / "judged.txt", 3000, seed=9)),
            "held_out_tokens": 2048,
        }
    )  # fmt: skip
    told: list[str] = []
    found = run_pipeline(compress, source, store=store, home=home, on_stage=told.append)
    names = [stage.version.name for stage in found.stages]
    assert names == ["tiny-pruned", "tiny-pruned-distilled", "tiny-pruned-distilled-int8"]
    assert "distill tiny-pruned@v1: on 12,000 tokens, with the teacher tiny@v1" in told
    pruned, distilled, quantized = (
        next(one for one in stage.measured if one.kind == "quality").values["kl_divergence"]["mean"]
        for stage in found.stages
    )
    assert distilled < 0.9 * pruned
    assert quantized < pruned
    again = run_pipeline(compress, source, store=store, home=home)
    assert again.result == found.result
