"""Encoder graphs against the same arithmetic written plainly in NumPy, in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest

from tests.artifacts.models import write_safetensors
from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.errors import FormatRefused, IntegrityError
from thrifty.graphs.encoder import build_encoder

pytestmark = pytest.mark.engine

Array = npt.NDArray[np.float64]

EXACT = 1e-5
"""Embeddings have length one; this is what sums of float32 in another order come to."""
LAYERS, WIDTH, HEADS, INNER, VOCAB, CONTEXT = 2, 32, 4, 48, 40, 24
EPSILON = 1e-12
TEXTS = [[2, 7, 30, 11, 3], [2, 3], [2, *range(4, 24), 3]]

CONFIG = {
    "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": WIDTH,
    "intermediate_size": INNER, "layer_norm_eps": EPSILON, "max_position_embeddings": CONTEXT,
    "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
    "pad_token_id": 0, "type_vocab_size": 2,
}  # fmt: skip


def make_tensors(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Random weights under transformers' names."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int, around: float = 0.0, scale: float = 0.3) -> npt.NDArray[np.float32]:
        return (around + scale * generator.standard_normal(shape)).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": draw(VOCAB, WIDTH, scale=1.0),
        "embeddings.position_embeddings.weight": draw(CONTEXT, WIDTH),
        "embeddings.token_type_embeddings.weight": draw(2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        linears = {
            "attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER),
        }  # fmt: skip
        for name, shape in linears.items():
            tensors[f"{prefix}{name}.weight"] = draw(*shape)
            tensors[f"{prefix}{name}.bias"] = draw(shape[0])
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    for name in norms:
        tensors[f"{name}.weight"] = draw(WIDTH, around=1.0, scale=0.1)
        tensors[f"{name}.bias"] = draw(WIDTH, scale=0.1)
    return tensors


def write(
    folder: Path,
    prefix: str = "",
    tensors: dict[str, npt.NDArray[np.float32]] | None = None,
    **changes: Any,
) -> Path:
    named = {prefix + name: tensor for name, tensor in (tensors or make_tensors()).items()}
    write_safetensors(folder / "model.safetensors", named)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def write_pooling(folder: Path, mode: str, *, normalize: bool) -> None:
    """The files in which sentence-transformers says how it pools."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    if normalize:
        kinds["2_Normalize"] = "Normalize"
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{k}"} for path, k in kinds.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))


# the reference


def embed_plainly(ids: list[int], pooling: str = "mean", *, normalize: bool = True) -> Array:
    """One text's embedding, token by token and head by head, without padding."""
    w = {
        name: (
            tensor.astype(np.float16) if tensor.ndim == 2 and "_type_" not in name
            and "position" not in name else tensor
        ).astype(np.float64)
        for name, tensor in make_tensors().items()
    }  # fmt: skip

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
        return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    hidden = norm(
        np.array(
            [w["embeddings.word_embeddings.weight"][token]
             + w["embeddings.position_embeddings.weight"][at]
             + w["embeddings.token_type_embeddings.weight"][0] for at, token in enumerate(ids)]
        ),
        "embeddings.LayerNorm",
    )  # fmt: skip
    size = WIDTH // HEADS
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        query, key, value = (
            linear(hidden, f"{prefix}attention.self.{part}") for part in ("query", "key", "value")
        )
        mixed = np.zeros_like(hidden)
        for at in range(len(ids)):
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                weights = np.exp(key[:, part] @ query[at, part] / math.sqrt(size))
                mixed[at, part] = weights / weights.sum() @ value[:, part]
        hidden = norm(
            hidden + linear(mixed, f"{prefix}attention.output.dense"),
            f"{prefix}attention.output.LayerNorm",
        )
        inner = linear(hidden, f"{prefix}intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        hidden = norm(hidden + linear(inner, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")
    pooled: Array = hidden[0] if pooling == "cls" else hidden.mean(axis=0)
    return pooled / np.linalg.norm(pooled) if normalize else pooled


# the graph


def embed(folder: Path, texts: list[list[int]], scheme: str = "none") -> Array:
    """Embeddings of all `texts` in one padded batch."""
    model = build_encoder(load_encoder(folder), scheme)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": 1,
    }  # fmt: skip
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    longest = max(map(len, texts))
    ids = np.array([text + [0] * (longest - len(text)) for text in texts], dtype=np.int64)
    mask = np.array([[1] * len(t) + [0] * (longest - len(t)) for t in texts], dtype=np.int64)
    result = request.infer({"input_ids": ids, "attention_mask": mask})
    return np.array(result["embeddings"], dtype=np.float64)


def test_embeddings(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for text in TEXTS:
        (vector,) = embed(folder, [text])
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(vector, embed_plainly(text), atol=EXACT)


def test_texts_of_a_batch_do_not_mix(tmp_path: Path) -> None:
    vectors = embed(write(tmp_path), TEXTS)
    expected = [embed_plainly(text) for text in TEXTS]
    np.testing.assert_allclose(vectors, expected, atol=EXACT)
    assert np.abs(expected[0] - expected[1]).max() > 100 * EXACT


def test_weights_may_have_a_prefix(tmp_path: Path) -> None:
    (vector,) = embed(write(tmp_path, "bert."), TEXTS[:1])
    np.testing.assert_allclose(vector, embed_plainly(TEXTS[0]), atol=EXACT)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("mode", "pooling"), [("mean_tokens", "mean"), ("cls_token", "cls")])
def test_pooling_is_the_models(mode: str, pooling: str, normalize: bool, tmp_path: Path) -> None:
    write_pooling(write(tmp_path), mode, normalize=normalize)
    expected = [embed_plainly(text, pooling, normalize=normalize) for text in TEXTS]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(embed(tmp_path, TEXTS), expected, atol=4 * EXACT * scale)


@pytest.mark.parametrize(("scheme", "least"), [("int8", 0.999), ("int4", 0.9)])
def test_fewer_bits_stay_close(scheme: str, least: float, tmp_path: Path) -> None:
    vectors = embed(write(tmp_path), TEXTS, scheme)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert least < float(vector @ embed_plainly(text)) < 1 - 1e-7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["RobertaModel"]}, "'RobertaModel' is not supported; supported are"),
        ({"hidden_act": "gelu_new"}, "the activation 'gelu_new' is not supported; gelu is"),
        ({"position_embedding_type": "relative_key"}, "only absolute position embeddings"),
    ],
)
def test_what_the_graph_would_get_wrong_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatRefused, match=message):
        load_encoder(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("written", "pooling"),
    [
        ({"pooling_mode": "cls", "embedding_dimension": 8}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ],
)
def test_pooling_is_read_as_any_release_of_sentence_transformers_writes_it(
    tmp_path: Path, written: dict[str, Any], pooling: str
) -> None:
    write_pooling(write(tmp_path), "mean_tokens", normalize=True)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(written))
    assert load_encoder(tmp_path).shape.pooling == pooling


def test_other_poolings_are_refused(tmp_path: Path) -> None:
    write_pooling(write(tmp_path), "mean_tokens", normalize=True)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(FormatRefused, match="the pooling lasttoken is not supported; mean and cls"):
        load_encoder(tmp_path)


def test_poolings_of_older_releases_are_refused(tmp_path: Path) -> None:
    write_pooling(write(tmp_path), "max_tokens", normalize=True)
    with pytest.raises(
        FormatRefused, match="pooling_mode_max_tokens is not supported; mean and cls"
    ):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"max_position_embeddings": 512}, {"vocab_size": 80}, {"hidden_size": 64}],
)
def test_weights_of_another_shape_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"tensor '\S+' is \d+ x \d+, and .* settings say"):
        build_encoder(load_encoder(write(tmp_path, **changes)), "none")
