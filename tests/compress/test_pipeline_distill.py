"""The pipeline's distillation stage, if PyTorch is installed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from tests.compress.test_pipeline import MODEL, PRUNE
from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.compress.distill.training_inputs import TrainingInputs
from thrifty.compress.mix import as_mix
from thrifty.compress.pipeline import run_pipeline
from thrifty.compress.prune.pruner import ROUNDING
from thrifty.home import Home
from thrifty.spec.compress import CompressSpec, DistillSpec, Divergence
from thrifty.types import ignore_progress

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


@pytest.mark.engine
@pytest.mark.long
def test_steps_prune_what_the_step_before_has_learned(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    home = Home(tmp_path)
    store = Store(home.models)
    source = put(store, dataclasses.replace(MODEL, layers=6))
    compress = CompressSpec.model_validate(
        {
            "prune": {"parameters": 0.5, "depth": True, "tokens": 1024, "steps": 2},
            "distill": {"tokens": 24_000, "batch_tokens": 512, "learning_rate": 3e-3},
            "quantize": "none",
            "text": str(write_text(tmp_path / "learned.txt", 30_000, seed=5)),
            "held_out": str(write_text(tmp_path / "judged.txt", 1500, seed=9)),
            "held_out_tokens": 1024,
        }
    )  # fmt: skip
    found = run_pipeline(compress, source, store=store, home=home)
    assert [stage.planned.title for stage in found.stages] == [
        "prune 1 of 2", "distill 1 of 2", "prune 2 of 2", "distill 2 of 2",
    ]  # fmt: skip
    artifacts = [source[1], *(stage.artifact for stage in found.stages)]
    for before, stage in zip(artifacts, found.stages, strict=False):
        assert stage.version.lineage.parents[0].id == before.id
    layers = [load_decoder(store.folder_of(one.id)).shape.layers for one in artifacts]
    assert layers == [6, 4, 4, 2, 2]
    kept = artifacts[-1].description.parameters / artifacts[0].description.parameters
    assert kept <= 0.5 + ROUNDING
    taught = [one.version.lineage for one in found.stages if one.name == "distill"]
    assert [one.recipe["tokens"] for one in taught] == [12_000, 12_000]
    assert len({one.recipe["teacher"] for one in taught}) == 1
    assert all(one.figures["after"] < one.figures["before"] for one in taught)
    assert run_pipeline(compress, source, store=store, home=home).result == found.result

    # Hidden states are compared with those of the layers that stayed through both steps.
    first, second = (
        {entry["layer"] for entry in found.stages[n].version.lineage.figures["layers_removed"]}
        for n in (0, 2)
    )
    stayed = [layer for layer in range(6) if layer not in first]
    stayed = [layer for number, layer in enumerate(stayed) if number not in second]
    last = found.stages[2]
    inputs = TrainingInputs(
        store, (last.version, last.artifact), as_mix(tmp_path / "learned.txt"),
        settings.Training(tokens=1000, hidden=0.5), 128, home.evaluations,
        ignore_progress, lambda text: None,
    )  # fmt: skip
    job, _ = inputs.plan(source[0].label, "torch", None)
    assert job["layers"] == [0, stayed[0] + 1, 6]
