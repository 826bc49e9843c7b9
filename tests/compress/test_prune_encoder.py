"""Pruned encoders: plain checkpoints of the requested size, close to the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.stored import SOURCE
from tests.evaluate.test_embeddings import make_words, write_texts
from tests.graphs.test_encoder import (
    INNER,
    LAYERS,
    VOCAB,
    WIDTH,
    make_tensors,
    write_pooling,
)
from tests.graphs.test_encoder import write as write_files
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint, load_encoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.compress.prune.encoder import prune_encoder
from thrifty.compress.prune.encoder_depth import rank_encoder_layers
from thrifty.compress.prune.encoder_inputs import EncoderRun, collect_encoder_inputs
from thrifty.compress.prune.encoder_width import (
    EncoderWidths,
    count_encoder_parameters,
    narrow_encoder,
    read_encoder_widths,
)
from thrifty.compress.prune.pruner import ROUNDING
from thrifty.compress.prune.request import PruningRequest
from thrifty.compress.prune.views import ReplacedTensors
from thrifty.errors import CompressionError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.embeddings import compare_vectors, cosines
from thrifty.types import Format

pytestmark = pytest.mark.engine

_RANDOM = np.random.default_rng(1)
TEXTS = [[2, *_RANDOM.integers(4, VOCAB, _RANDOM.integers(3, 20)).tolist(), 3] for _ in range(300)]


def load(folder: Path, tensors: dict[str, Any] | None = None) -> EncoderCheckpoint:
    folder.mkdir(parents=True, exist_ok=True)
    return load_encoder(write_files(folder, tensors=tensors or make_tensors()))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("pruned") / "models")


@pytest.fixture(scope="module")
def made(store: Store) -> tuple[NamedVersion, Artifact]:
    return put_encoder(store)


def put_encoder(store: Store) -> tuple[NamedVersion, Artifact]:
    """A tiny encoder, with its tokenizer and pooling."""
    with store.stage("tiny") as stage:
        (stage / "model").mkdir(parents=True)
        folder = write_files(stage / "model", prefix="bert.", model_type="bert")
        write_pooling(folder, "mean_tokens", normalize=True)
        pooling = folder / "1_Pooling" / "config.json"
        pooling.write_text(
            json.dumps({**json.loads(pooling.read_text()), "word_embedding_dimension": WIDTH})
        )
        make_words().save(str(folder / "tokenizer.json"))
        return store.add(folder, "encoder", SOURCE)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "calibration.jsonl", 700, seed=5)


def test_counted_parameters_are_those_of_the_tensors(tmp_path: Path) -> None:
    checkpoint = load(tmp_path)
    widths = read_encoder_widths(checkpoint)
    assert widths == EncoderWidths(INNER, 4, 8)
    counted = count_encoder_parameters(checkpoint.shape, LAYERS, widths, segments=2, pooler=False)
    assert counted == sum(tensor.size for tensor in make_tensors().values())


def test_an_encoder_that_is_written_is_the_one_that_was_read(
    tmp_path: Path, store: Store, made: Any
) -> None:
    source = store.folder_of(made[1].id)
    before = load_encoder(source)
    write_encoder(before, source, tmp_path / "out")
    after = load_encoder(tmp_path / "out")
    assert after.shape == before.shape
    for name in make_tensors():
        np.testing.assert_allclose(
            after.tensors.read_tensor(name), before.tensors.read_tensor(name), rtol=1e-3, atol=1e-6
        )
    assert (tmp_path / "out" / "tokenizer.json").exists()
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling == {"pooling_mode_mean_tokens": True, "word_embedding_dimension": WIDTH}


def test_a_layer_that_does_nothing_goes_first(tmp_path: Path) -> None:
    tensors = make_tensors()
    for part in ("attention.output.dense", "output.dense"):
        for kind in ("weight", "bias"):
            tensors[f"encoder.layer.0.{part}.{kind}"] *= 1e-3
    for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
        # Norms whose inputs are already normalized, and which do not change them.
        tensors[f"encoder.layer.0.{norm}.weight"][:] = 1
        tensors[f"encoder.layer.0.{norm}.bias"][:] = 0
    tensors["embeddings.LayerNorm.weight"][:] = 1
    tensors["embeddings.LayerNorm.bias"][:] = 0
    (found,) = rank_encoder_layers(load(tmp_path, tensors), TEXTS[:40], 1)
    assert found.layer == 0
    assert found.influence < 1e-3
    assert found.cosine > 0.999


def test_neurons_that_do_nothing_cost_nothing(tmp_path: Path) -> None:
    tensors = make_tensors()
    for layer in range(LAYERS):
        tensors[f"encoder.layer.{layer}.output.dense.weight"][:, ::2] = 0
    checkpoint = load(tmp_path, tensors)
    inputs = collect_encoder_inputs(checkpoint, TEXTS)
    found, errors = narrow_encoder(checkpoint, inputs, EncoderWidths(INNER // 2, 4, 8))
    assert max(errors.values()) < 1e-6
    before, after = (EncoderRun(one).embed(TEXTS[:30]) for one in (checkpoint, found))
    assert cosines(before, after).min() > 0.9999


def test_what_stays_makes_up_for_what_goes(tmp_path: Path) -> None:
    """Updating weights and biases keeps the embeddings closer than dropping the same neurons."""
    checkpoint = load(tmp_path)
    inputs = collect_encoder_inputs(checkpoint, TEXTS)
    found, errors = narrow_encoder(checkpoint, inputs, EncoderWidths(32, 4, 8))
    assert set(errors) == {f"encoder.layer.{n}.output.dense" for n in range(LAYERS)}
    tensors = make_tensors()
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        rows = found.tensors.read_tensor(f"{prefix}intermediate.dense.weight")
        whole = tensors[f"{prefix}intermediate.dense.weight"]
        kept = [int(np.abs(whole - row).sum(axis=1).argmin()) for row in rows]
        gone = np.setdiff1d(np.arange(INNER), kept)
        assert len(gone) == INNER - 32
        tensors[f"{prefix}output.dense.weight"][:, gone] = 0
    plain = load(tmp_path / "plain", tensors)
    whole_of, solved, left_out = (
        EncoderRun(one).embed(TEXTS) for one in (checkpoint, found, plain)
    )
    assert 1 - cosines(solved, whole_of).mean() < 0.8 * (1 - cosines(left_out, whole_of).mean())


def test_arrays_of_any_order_are_read_by_rows(tmp_path: Path) -> None:
    """OpenVINO ignores the memory order of an array."""
    checkpoint = load(tmp_path)
    names = [f"encoder.layer.{n}.output.dense.weight" for n in range(LAYERS)]
    changed = {name: np.asfortranarray(make_tensors()[name]) for name in names}
    other = EncoderCheckpoint(checkpoint.shape, ReplacedTensors(checkpoint.tensors, changed))
    for weights in ("none", "int8"):
        before, after = (
            EncoderRun(one, weights=weights).embed(TEXTS[:5]) for one in (checkpoint, other)
        )
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_channels_go_with_their_heads(tmp_path: Path) -> None:
    """A quarter of the channels, and the head that goes with them, have no effect. Norms then
    normalize over fewer channels, and are corrected for the average, not for each token.
    """
    tensors = make_tensors()
    for name, values in tensors.items():
        if name.endswith(("embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")):
            values[..., 24:] = 0
        elif name.endswith(("output.dense.weight", "output.dense.bias")):
            values[24:] = 0
        if name.endswith("attention.output.dense.weight"):
            values[:, 24:] = 0
    checkpoint = load(tmp_path, tensors)
    inputs = collect_encoder_inputs(checkpoint, TEXTS)
    found, errors = narrow_encoder(checkpoint, inputs, EncoderWidths(INNER, 3, 8))
    assert (found.shape.hidden_size, found.shape.heads) == (24, 3)
    assert read_encoder_widths(found) == EncoderWidths(INNER, 3, 8)
    assert max(errors.values()) < 1e-6
    agreement = compare_vectors(*(EncoderRun(one).embed(TEXTS) for one in (found, checkpoint)))
    assert agreement.cosine is None, "the embeddings are narrower"
    assert agreement.rank_correlation is not None
    assert agreement.rank_correlation.spearman > 0.94, "0.92 without correcting the norms"


@pytest.mark.parametrize(
    ("parameters", "depth", "width"),
    [(0.8, True, False), (0.9, False, True), (0.8, True, True), (0.6, False, True)],
    ids=["depth", "width", "both", "channels"],
)
def test_what_is_made_has_the_size_and_is_evaluated(
    store: Store, made: Any, text: Path, tmp_path: Path, parameters: float, depth: bool, width: bool
) -> None:
    out = f"pruned-{parameters}-{depth}-{width}".lower()
    request = PruningRequest(parameters, out, text, depth=depth, width=width, tokens=4096)
    version, artifact, report = prune_encoder(store, *made, request)
    assert report is not None
    assert artifact.description.format is Format.SAFETENSORS
    assert report.chosen.parameters <= (parameters + ROUNDING) * report.parameters_before
    assert artifact.description.parameters == report.chosen.parameters
    assert report.chosen.rank_correlation == max(one.rank_correlation for one in report.candidates)
    assert bool(report.layers) or width
    assert version.lineage.figures["way"] == report.chosen.description
    held_out = write_texts(tmp_path / "held.jsonl", 60, seed=9)
    found = evaluate(
        out, "encoder@v1", EvaluationOptions(text=held_out), store=store, folder=tmp_path / "e"
    ).embeddings
    assert found is not None
    assert found.rank_correlation is not None
    assert found.rank_correlation.spearman > report.chosen.rank_correlation - 0.25
    folder = store.folder_of(artifact.id)
    width_now = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert width_now["word_embedding_dimension"] == load_encoder(folder).shape.hidden_size
    assert (load_encoder(folder).shape.hidden_size == WIDTH) == (found.cosine is not None)
    again, _, none = prune_encoder(store, *made, request)
    assert again == version
    assert none is None


def test_transformers_loads_it_and_says_the_same(
    store: Store, made: Any, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    prune_encoder(store, *made, PruningRequest(0.8, out="to-torch", calibration=text, tokens=4096))
    held_out = write_texts(tmp_path / "held.jsonl", 20, seed=9)
    from thrifty.evaluate.open_model import open_encoder

    graph, torch = (
        open_encoder("to-torch", store, exact=True, backend=backend)
        for backend in ("openvino", "torch")
    )
    texts = [
        graph.tokenizer.encode(json.loads(line)["text"])[:20]
        for line in held_out.read_text().splitlines()
    ]
    np.testing.assert_allclose(graph.embed(texts), torch.embed(texts), atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": 1.5}, "above 0 and below 1"),
        ({"depth": False, "width": False}, "nothing may be pruned"),
        ({"parameters": 0.05}, "cannot be reached"),
        ({"calibration": "short"}, "too few texts"),
    ],
)
def test_what_cannot_be_done_is_said(
    store: Store, made: Any, text: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments = {"parameters": 0.75, "out": "x", "calibration": text, **changes}
    if arguments["calibration"] == "short":
        arguments["calibration"] = write_texts(tmp_path / "short.jsonl", 280)
    with pytest.raises(CompressionError, match=message):
        prune_encoder(store, *made, PruningRequest(**arguments))  # type: ignore[arg-type]
