"""A decoder in fewer bits, made and measured on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from tests.engines.test_prepare import put
from tests.evaluate.bigram import write_text
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.compress.calibration import collect_inputs
from thrifty.compress.divergence_evaluator import RecipeResult
from thrifty.compress.overlap import check_no_overlap
from thrifty.compress.quantize import openvino
from thrifty.compress.quantize.gptq import round_to_nearest
from thrifty.compress.quantize.openvino import quantize_openvino
from thrifty.compress.quantize.recipes import Int4Weights, choose_recipe
from thrifty.compress.quantize.sensitivity import measure_sensitivity
from thrifty.compress.quantize.weight_formats import WEIGHT_FORMATS, Quantizer, WeightFormat
from thrifty.engines.base import choose_runnable
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.prepare import make_recipe
from thrifty.engines.openvino.processor import SCHEMES, find_features
from thrifty.errors import CompressionError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.kept_answers import KeptAnswers
from thrifty.types import Family, Format, Progress

pytestmark = pytest.mark.engine

WINDOWS = [
    np.array([(7 * i * i + n * i) % 250 for i in range(100)], dtype=np.int64) for n in (3, 5)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("compressed") / "models")


@pytest.fixture(scope="module")
def made(store: Store) -> tuple[NamedVersion, Artifact]:
    return put(store)


def test_inputs_of_matrices_are_what_they_are_multiplied_with(store: Store, made: Any) -> None:
    checkpoint = load_decoder(store.folder_of(made[1].id))
    inputs = collect_inputs(checkpoint, WINDOWS)
    names = {f"model.layers.{layer}.{part}" for layer in range(checkpoint.shape.layers) for part in
             ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}  # fmt: skip
    assert set(inputs) == names
    assert inputs["model.layers.0.self_attn.q_proj"] is inputs["model.layers.0.self_attn.v_proj"]
    assert inputs["model.layers.0.mlp.gate_proj"] is inputs["model.layers.0.mlp.up_proj"]
    # The first matrix is fed the normalized embeddings, which can be worked out by hand.
    table = checkpoint.tensors.read_tensor("model.embed_tokens.weight")
    scale = checkpoint.tensors.read_tensor("model.layers.0.input_layernorm.weight")
    x = table[np.concatenate(WINDOWS)]
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + checkpoint.shape.norm_epsilon) * scale
    np.testing.assert_allclose(
        inputs["model.layers.0.self_attn.q_proj"], x.T @ x / len(x), rtol=2e-2, atol=2e-2
    )


def test_sensitivity_is_the_divergence_of_that_matrix_alone(
    store: Store, made: Any, tmp_path: Path
) -> None:
    checkpoint = load_decoder(store.folder_of(made[1].id))
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"]
    codes = {n: round_to_nearest(checkpoint.tensors.read_tensor(f"{n}.weight"), 16) for n in names}
    told: list[Any] = []
    with KeptAnswers(tmp_path / "kept.jsonl") as kept:
        found = measure_sensitivity(checkpoint, codes, WINDOWS, kept, told.append)
    assert set(found) == set(names)
    assert all(0 < cost < 1 for cost in found.values())
    assert told[-1].done == told[-1].total == 2
    # A run that was broken off behind the first measures the second.
    lines = (tmp_path / "kept.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "kept.jsonl").write_bytes(lines[0] + lines[1][:9])
    told.clear()
    with KeptAnswers(tmp_path / "kept.jsonl") as kept:
        again = measure_sensitivity(checkpoint, codes, WINDOWS, kept, told.append)
    assert [one.done for one in told] == [2]
    assert again == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("form", WEIGHT_FORMATS, ids=str)
def test_a_graph_multiplies_with_what_a_form_stands_for(form: WeightFormat) -> None:
    rng = np.random.default_rng(6)
    weights = rng.normal(0.01, 0.02, (48, 128)).astype(np.float32)
    fed = rng.normal(0, 1, (1, 40, 128)).astype(np.float32) * np.linspace(0.1, 8, 128)
    fed = fed.astype(np.float32)
    inputs = {"m": (fed[0].T @ fed[0] / 40 + np.eye(128)).astype(np.float32)}
    tensors = SimpleNamespace(read_tensor=lambda name: weights)
    found = Quantizer(SimpleNamespace(tensors=tensors), inputs).make("m", form)  # type: ignore[arg-type]
    x = op.parameter([1, -1, 128], ov.Type.f32)
    y = Int4Weights({"m": found}).multiply(x, "m", weights)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = ov.Core().compile_model(ov.Model([y], [x]), "CPU", settings)
    np.testing.assert_allclose(
        compiled({0: fed})[0], fed @ found.dequantize().T, rtol=2e-3, atol=2e-3
    )


def test_the_first_recipe_that_is_nearly_the_best_is_taken() -> None:
    measured = [
        RecipeResult("plain", 4.25, 0.5),
        RecipeResult("fast", 5, 0.104),
        RecipeResult("best", 5, 0.1),
    ]
    assert choose_recipe(measured).recipe == "fast"
    # Offsets are slower to compute with, and are taken where they are worth it.
    assert choose_recipe([*measured, RecipeResult("with offsets", 5, 0.06)]).recipe == "fast"
    assert (
        choose_recipe([*measured, RecipeResult("with offsets", 5, 0.04)]).recipe == "with offsets"
    )
    assert choose_recipe([RecipeResult("with offsets", 4.5, 0.04)]).recipe == "with offsets"


@pytest.mark.parametrize("scheme", ["int8", "w8a8", "int4"])
def test_what_is_made_is_a_model_that_is_served_and_evaluated(
    store: Store, made: Any, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Inputs of random matrices are harder to round than those of a model that learned something.
    monkeypatch.setattr(openvino, "MOST_DIVERGENCE", 0.05)
    text = write_text(tmp_path / "calibration.txt", 40_000, seed=5)
    version, artifact, measured = quantize_openvino(
        store, *made, scheme, out=f"small-{scheme}", calibration=text, bits=5.5, tokens=8192
    )
    assert (version.name, artifact.description.format) == (f"small-{scheme}", Format.OPENVINO)
    assert artifact.description.family is Family.DECODER
    # A processor that would compute it wrongly gets what takes its place.
    features = find_features(detect_machine())
    assert artifact.description.weights == choose_runnable(SCHEMES, scheme, features)
    assert version.lineage.parents[0].id == made[1].id
    held_out = write_text(tmp_path / "held.txt", 3000, seed=9)
    found = evaluate(
        f"small-{scheme}",
        "tiny@v1",
        EvaluationOptions(text=held_out, window=128),
        store=store,
        folder=tmp_path / "e",
    ).divergence
    assert found is not None
    kinds = {one.recipe: one.kl_divergence for one in measured}
    best = min(kinds.values())
    if scheme == "int8":
        assert found.kl_divergence.mean < 0.1
        assert len(kinds) == 3
        assert kinds[version.lineage.figures["recipe"]] == best
        assert version.lineage.figures["bits_per_weight"] > 8
    elif scheme == "w8a8":
        assert found.kl_divergence.mean < 0.1
        figures = version.lineage.figures
        assert kinds[figures["recipe"]] <= openvino.MOST_DIVERGENCE
        assert figures["static"] > 0
        graph = ov.Core().read_model(store.folder_of(artifact.id) / "openvino_model.xml")
        assert any(one.get_type_name() == "FakeQuantize" for one in graph.get_ops())
    else:
        assert found.kl_divergence.mean < 2 * best, "other text, the same order of magnitude"
        assert version.lineage.figures["calibration_kl_divergence"] == kinds
        assert kinds[version.lineage.figures["recipe"]] <= 2.1 * best
        assert best < kinds["round to nearest, groups of 64"]
        assert all(one.bits_per_weight <= 5.5 for one in measured)
        assert sum(name.startswith("chosen by matrix") for name in kinds) == 3
        forms = version.lineage.figures["forms"]
        assert sum(forms.values()) == 7 * load_decoder(store.folder_of(made[1].id)).shape.layers
    # The same again is there already.
    again, _, _ = quantize_openvino(
        store, *made, scheme, out=f"small-{scheme}", calibration=text, bits=5.5, tokens=8192
    )
    assert again == version


def test_four_bits_go_on_where_they_were_broken_off(
    store: Store, made: Any, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "calibration.txt", 40_000, seed=5)
    settings: Any = {"calibration": text, "bits": 5.3, "tokens": 4096}

    before = set(store.root.glob("partial/*/measured.jsonl"))

    def stop(step: Progress) -> None:
        if step.step == "judge" and step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_openvino(store, *made, "int4", out="broken-off", **settings, on_progress=stop)
    # Only its own: another test that failed in between may have left some, too.
    (kept,) = set(store.root.glob("partial/*/measured.jsonl")) - before
    told: list[str] = []
    version, _, measured = quantize_openvino(
        store, *made, "int4", out="broken-off", **settings,
        on_progress=lambda step: told.append(step.step),
    )  # fmt: skip
    assert "sensitivity" not in told
    assert told.count("judge") == len(measured) > 2
    assert version.name == "broken-off"
    assert not kept.exists()


@pytest.mark.long
def test_fixed_grids_that_cost_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "models")
    made = put(store)
    monkeypatch.setattr(openvino, "MOST_DIVERGENCE", 1e-9)
    text = write_text(tmp_path / "calibration.txt", 40_000)
    with pytest.raises(
        CompressionError, match="more than the 1e-09 that they may; take --scheme int8"
    ):
        quantize_openvino(store, *made, "w8a8", out="x", calibration=text, tokens=2048)
    monkeypatch.setattr(openvino, "NOISE", (0.0, 1e-12))
    with pytest.raises(CompressionError, match=r"no matrix of this model .* take --scheme int8"):
        quantize_openvino(store, *made, "w8a8", out="x", calibration=text, tokens=2048)
    with pytest.raises(CompressionError, match=r"w[78]a8 learns from text"):
        quantize_openvino(store, *made, "w8a8", out="x")


def test_eight_bits_without_text_are_rounded_plainly(store: Store, made: Any) -> None:
    version, _, measured = quantize_openvino(store, *made, "int8", out="plain-int8")
    assert version.lineage.recipe == make_recipe("int8")
    assert not measured


def test_text_of_one_window_is_too_short(store: Store, made: Any, tmp_path: Path) -> None:
    text = write_text(tmp_path / "short.txt", 300)
    with pytest.raises(CompressionError, match="too short: it has 1 windows of 512 tokens"):
        quantize_openvino(store, *made, "int8", out="x", calibration=text)


def test_four_bits_need_text_and_room_for_scales(store: Store, made: Any, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="learns from text"):
        quantize_openvino(store, *made, "int4", out="x")
    text = write_text(tmp_path / "calibration.txt", 40_000)
    with pytest.raises(CompressionError, match=r"take \d\.\d\d bits a weight, not 4"):
        quantize_openvino(store, *made, "int4", out="x", calibration=text, bits=4, tokens=2048)


def test_text_that_is_judged_by_is_not_learned_from(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(4000)]
    calibration, held_out = tmp_path / "c.txt", tmp_path / "h.jsonl"
    calibration.write_text(" ".join(words[:3000]))
    held_out.write_text(json.dumps({"text": " ".join(words[3000:])}) + "\n")
    check_no_overlap(calibration, held_out)
    held_out.write_text(json.dumps({"text": " ".join(words[2000:])}) + "\n")
    with pytest.raises(CompressionError, match="use other text to learn from"):
        check_no_overlap(calibration, held_out)
