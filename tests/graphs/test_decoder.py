"""Decoder graphs against the same arithmetic written plainly in NumPy, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest

from tests.artifacts.models import Llama
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.errors import FormatRefused, IntegrityError
from thrifty.graphs.decoder import build_decoder
from thrifty.types import Progress

pytestmark = pytest.mark.engine

Array = npt.NDArray[np.float64]

EXACT = 2e-4
"""Logits are of the order of 10; this is what sums of float32 in another order come to."""
PROMPT = [5, 17, 1, 39, 22, 8, 3, 30, 11]
ANSWER = [2, 14, 14, 38]

LLAMA = Llama()
MODELS = {
    "llama": LLAMA,
    "its own head": replace(LLAMA, tied=False),
    "every head its own keys": replace(LLAMA, kv_heads=4),
    "one head of keys": replace(LLAMA, kv_heads=1),
    "one layer": replace(LLAMA, layers=1),
    "biases": replace(LLAMA, biases=True),
    "another base": replace(LLAMA, theta=500_000.0),
    "qwen2": replace(LLAMA, kind="qwen2"),
    "qwen3": replace(LLAMA, kind="qwen3", tied=False),
    "heads wider than the model": replace(LLAMA, kind="qwen3", head_dim=16),
    "heads narrower than the model": replace(LLAMA, head_dim=4),
}
MISTRAL = {"architectures": ["MistralForCausalLM"], "sliding_window": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


# the reference


def plain_frequency(exponent: float, theta: float) -> float:
    return float(theta**-exponent)


def stretch_linear(frequency: float, factor: float) -> float:
    return frequency / factor


def stretch_llama3(frequency: float) -> float:
    """As transformers has it, by wavelengths."""
    wavelength = 2 * np.pi / frequency
    original, low, high = 64, 1.0, 4.0
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / 8.0
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / 8.0 + smooth * frequency


def halve(tensors: dict[str, Any]) -> dict[str, Array]:
    """Matrices as float16 keeps them; vectors as they are."""
    return {
        name: (tensor.astype(np.float16) if tensor.ndim == 2 else tensor).astype(np.float64)
        for name, tensor in tensors.items()
    }


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weight


def rotate(x: Array, position: int, frequencies: list[float]) -> Array:
    """Turn each pair (i, i + half) of one head's vector by its angle."""
    half = len(frequencies)
    out = np.empty_like(x)
    for i, frequency in enumerate(frequencies):
        cos, sin = np.cos(position * frequency), np.sin(position * frequency)
        out[i] = x[i] * cos - x[i + half] * sin
        out[i + half] = x[i + half] * cos + x[i] * sin
    return out


def compute_logits(
    model: Llama,
    ids: list[int],
    stretch: Callable[[float], float] = lambda frequency: frequency,
    tensors: dict[str, Array] | None = None,
) -> Array:
    """[tokens, vocabulary]: everything anew for each token, head by head, without a cache."""
    w = halve(model.make_tensors()) if tensors is None else tensors
    frequencies = [
        stretch(plain_frequency(2 * i / model.head_dim, model.theta))
        for i in range(model.head_dim // 2)
    ]

    def project(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    hidden = w["model.embed_tokens.weight"][ids]
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}."
        attention = f"{prefix}self_attn."
        x = rms_norm(hidden, w[f"{prefix}input_layernorm.weight"])
        split = {}
        for letter, heads in (("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads)):
            part = project(x, f"{attention}{letter}_proj").reshape(len(ids), heads, model.head_dim)
            if f"{attention}{letter}_norm.weight" in w:
                part = rms_norm(part, w[f"{attention}{letter}_norm.weight"])
            if letter != "v":
                part = np.array(
                    [[rotate(head, at, frequencies) for head in token]
                     for at, token in enumerate(part)]
                )  # fmt: skip
            split[letter] = part
        mixed = np.zeros((len(ids), model.heads, model.head_dim))
        for at in range(len(ids)):
            for head in range(model.heads):
                shared = head // (model.heads // model.kv_heads)
                scores = split["k"][: at + 1, shared] @ split["q"][at, head]
                weights = np.exp(scores / np.sqrt(model.head_dim))
                mixed[at, head] = weights / weights.sum() @ split["v"][: at + 1, shared]
        hidden = hidden + project(mixed.reshape(len(ids), -1), f"{attention}o_proj")
        x = rms_norm(hidden, w[f"{prefix}post_attention_layernorm.weight"])
        gate = project(x, f"{prefix}mlp.gate_proj")
        inner = gate / (1 + np.exp(-gate)) * project(x, f"{prefix}mlp.up_proj")
        hidden = hidden + project(inner, f"{prefix}mlp.down_proj")
    hidden = rms_norm(hidden, w["model.norm.weight"])
    return hidden @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


# the graph


class Graph:
    """A compiled decoder with its state, in full precision."""

    def __init__(self, model: ov.Model) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "INFERENCE_NUM_THREADS": 1,
        }  # fmt: skip
        self.request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(
        self,
        ids: list[list[int]],
        past: int = 0,
        mask: list[list[int]] | None = None,
        positions: list[list[int]] | None = None,
        beams: list[int] | None = None,
    ) -> Array:
        """[batch, tokens, vocabulary] for tokens that follow `past` others."""
        batch, tokens = np.array(ids).shape
        row = list(range(past, past + tokens))
        inputs = {
            "input_ids": np.array(ids, dtype=np.int64),
            "attention_mask": np.array(mask or [[1] * (past + tokens)] * batch, dtype=np.int64),
            "position_ids": np.array(positions or [row] * batch, dtype=np.int64),
            "beam_idx": np.array(beams or list(range(batch)), dtype=np.int32),
        }
        return self.request.infer(inputs)["logits"].astype(np.float64)


def build(folder: Path, scheme: str = "none") -> Graph:
    return Graph(build_decoder(load_decoder(folder), scheme))


def write(model: Llama, folder: Path, **changes: Any) -> Path:
    return model.write_safetensors(folder, **changes)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_prompt_and_of_each_token_after_it(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    graph = build(write(model, tmp_path))
    expected = compute_logits(model, PROMPT + ANSWER)
    first = graph.run([PROMPT])[0]
    np.testing.assert_allclose(first, expected[: len(PROMPT)], atol=EXACT)
    for at, token in enumerate(ANSWER, start=len(PROMPT)):
        (logits,) = graph.run([[token]], past=at)[0]
        np.testing.assert_allclose(logits, expected[at], atol=EXACT)


def test_reference_looks_at_what_it_should() -> None:
    """A reference to which nothing matters would agree with nothing, or with everything."""
    base = compute_logits(LLAMA, PROMPT)
    assert np.abs(base).max() > 1
    assert np.abs(base[:-1] - compute_logits(LLAMA, PROMPT[:-1])).max() < 1e-9
    changes = [
        compute_logits(LLAMA, [PROMPT[1], PROMPT[0], *PROMPT[2:]]),
        compute_logits(LLAMA, PROMPT, stretch=lambda f: stretch_linear(f, 4.0)),
        compute_logits(LLAMA, PROMPT, stretch=stretch_llama3),
    ]
    for changed in changes:
        assert np.abs(changed - base)[-1].max() > 100 * EXACT


def test_mistral_is_a_llama_within_its_window(tmp_path: Path) -> None:
    checkpoint = load_decoder(write(LLAMA, tmp_path, **MISTRAL))
    assert checkpoint.shape.context_length == 32
    graph = Graph(build_decoder(checkpoint, "none"))
    expected = compute_logits(LLAMA, PROMPT)
    np.testing.assert_allclose(graph.run([PROMPT])[0], expected, atol=EXACT)


@pytest.mark.parametrize(
    ("changes", "stretch"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
         lambda f: stretch_linear(f, 4.0)),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, lambda f: stretch_linear(f, 2.5)),
        ({"rope_scaling": LLAMA3}, stretch_llama3),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 10_000.0, **LLAMA3}},
         stretch_llama3),
        ({"rope_scaling": {"rope_type": "default"}}, lambda f: f),
    ],
)  # fmt: skip
def test_stretched_positions(
    changes: dict[str, Any], stretch: Callable[[float], float], tmp_path: Path
) -> None:
    # Wide heads, so that each of llama3's three ranges has frequencies in it.
    model = replace(LLAMA, head_dim=16)
    graph = build(write(model, tmp_path, **changes))
    expected = compute_logits(model, PROMPT + ANSWER, stretch)
    np.testing.assert_allclose(graph.run([PROMPT + ANSWER])[0], expected, atol=EXACT)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_gguf_and_safetensors_are_the_same_model(kind: str, tmp_path: Path) -> None:
    """llama.cpp keeps the rotary dimensions of llamas in another order."""
    model = replace(LLAMA, kind=kind, tied=False)
    model.write_gguf(tmp_path / "m.gguf")
    expected = compute_logits(model, PROMPT)
    np.testing.assert_allclose(build(tmp_path).run([PROMPT])[0], expected, atol=EXACT)


def test_gguf_may_bring_divisors_of_its_frequencies(tmp_path: Path) -> None:
    factors = np.array([1.0, 1.0, 3.0, 8.0], dtype=np.float32)
    LLAMA.write_gguf(tmp_path / "m.gguf", extra_tensors={"rope_freqs.weight": factors})
    plain = [plain_frequency(2 * i / 8, 10_000.0) for i in range(4)]
    by_frequency = dict(zip(plain, factors.tolist(), strict=True))
    expected = compute_logits(LLAMA, PROMPT, lambda f: f / by_frequency[f])
    np.testing.assert_allclose(build(tmp_path).run([PROMPT])[0], expected, atol=EXACT)


# the state


@pytest.mark.parametrize("sizes", [[3, 3, 3, 4], [1] * 13, [12, 1]])
def test_prompt_may_come_in_chunks(sizes: list[int], tmp_path: Path) -> None:
    graph = build(write(LLAMA, tmp_path))
    ids = PROMPT + ANSWER
    expected = compute_logits(LLAMA, ids)
    past = 0
    for size in sizes:
        logits = graph.run([ids[past : past + size]], past=past)[0]
        np.testing.assert_allclose(logits, expected[past : past + size], atol=EXACT)
        past += size
    assert past == len(ids)


def test_state_that_is_reset_is_forgotten(tmp_path: Path) -> None:
    graph = build(write(LLAMA, tmp_path))
    graph.run([PROMPT])
    graph.request.reset_state()
    expected = compute_logits(LLAMA, ANSWER)
    np.testing.assert_allclose(graph.run([ANSWER])[0], expected, atol=EXACT)


def test_rows_of_a_batch_do_not_mix(tmp_path: Path) -> None:
    graph = build(write(LLAMA, tmp_path))
    rows = [PROMPT, PROMPT[::-1], [7] * len(PROMPT)]
    logits = graph.run(rows)
    more = graph.run([[4], [5], [6]], past=len(PROMPT))
    for row, token, first, second in zip(rows, (4, 5, 6), logits, more, strict=True):
        expected = compute_logits(LLAMA, [*row, token])
        np.testing.assert_allclose(np.concatenate([first, second]), expected, atol=EXACT)


def test_rows_may_be_padded_on_the_left(tmp_path: Path) -> None:
    graph = build(write(LLAMA, tmp_path))
    pad = 4
    short = PROMPT[pad:]
    mask = [[1] * len(PROMPT), [0] * pad + [1] * len(short)]
    positions = [list(range(len(PROMPT))), [0] * pad + list(range(len(short)))]
    logits = graph.run([PROMPT, [0] * pad + short], mask=mask, positions=positions)
    np.testing.assert_allclose(logits[0], compute_logits(LLAMA, PROMPT), atol=EXACT)
    np.testing.assert_allclose(logits[1][pad:], compute_logits(LLAMA, short), atol=EXACT)


def test_beams_take_their_past_with_them(tmp_path: Path) -> None:
    graph = build(write(LLAMA, tmp_path))
    rows = [PROMPT, PROMPT[::-1]]
    graph.run(rows)
    logits = graph.run([[4], [5]], past=len(PROMPT), beams=[1, 1])
    for token, (row,) in zip((4, 5), logits, strict=True):
        expected = compute_logits(LLAMA, [*rows[1], token])[-1]
        np.testing.assert_allclose(row, expected, atol=EXACT)


def test_masks_are_of_floats(tmp_path: Path) -> None:
    """With a mask of booleans the engine computes attention of whole windows many times slower."""
    write(LLAMA, tmp_path)
    model = build_decoder(load_decoder(tmp_path), "none")
    attention = [
        node for node in model.get_ops() if node.get_type_name() == "ScaledDotProductAttention"
    ]
    assert len(attention) == LLAMA.layers
    assert all(node.input(3).get_element_type() == ov.Type.f32 for node in attention)


def test_graph_turns_into_paged_attention() -> None:
    """The form in which the engine runs it: no state is left, blocks of cache come in."""
    from openvino._offline_transformations import paged_attention_transformation

    from thrifty.artifacts.checkpoint import DecoderCheckpoint, DecoderShape

    class Tensors:
        """The weights of a llama, from memory."""

        values = LLAMA.make_tensors()

        def __contains__(self, name: str) -> bool:
            return name in self.values

        def read_tensor(self, name: str) -> Any:
            return self.values[name]

    shape = DecoderShape(
        architecture="llama", layers=2, hidden_size=32, heads=4, kv_heads=2, head_dim=8,
        vocab_size=40, context_length=64, norm_epsilon=1e-5, rope_theta=10_000.0,
    )  # fmt: skip
    model = build_decoder(DecoderCheckpoint(shape, Tensors()), "int8")
    paged_attention_transformation(model)
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert kinds.count("PagedAttentionExtension") == shape.layers
    assert not {"ReadValue", "Assign", "ScaledDotProductAttention"} & set(kinds)
    names = {name for port in model.inputs for name in port.get_names()}
    assert {"key_cache.0", "value_cache.1", "past_lens", "block_indices"} <= names


# the weights


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_eight_bits_stay_close(kind: str, tmp_path: Path) -> None:
    model = replace(LLAMA, kind=kind, tied=False)
    logits = build(write(model, tmp_path), "int8").run([PROMPT])[0]
    expected = compute_logits(model, PROMPT)
    # A step of the grid is 1/255 of a row's range; random weights have no outliers.
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean() > 0.8


def test_four_bits_are_the_same_model_still(tmp_path: Path) -> None:
    model = replace(LLAMA, hidden=64, head_dim=16, inner=96)
    logits = build(write(model, tmp_path), "int4").run([PROMPT])[0]
    expected = compute_logits(model, PROMPT)
    correlation = np.corrcoef(logits.ravel(), expected.ravel())[0, 1]
    assert 0.9 < correlation < 0.99999


def test_progress_is_told_layer_by_layer(tmp_path: Path) -> None:
    told: list[Progress] = []
    build_decoder(load_decoder(write(LLAMA, tmp_path)), "none", told.append)
    assert [(p.step, p.done, p.total) for p in told] == [
        ("convert", 0, 2), ("convert", 1, 2), ("convert", 2, 2),
    ]  # fmt: skip


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel' is not supported; supported are"),
        ({"hidden_act": "gelu"}, "the activation 'gelu' is not supported; silu is"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
         "the rotary scaling 'yarn' is not supported; linear and llama3 are"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rotary scaling 'dynamic'"),
        ({"partial_rotary_factor": 0.5}, r"\(0\.5 of a head\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
    ],
)  # fmt: skip
def test_what_the_graph_would_get_wrong_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatRefused, match=message):
        load_decoder(write(LLAMA, tmp_path, **changes))


def test_missing_weight_is_named(tmp_path: Path) -> None:
    write(LLAMA, tmp_path, num_hidden_layers=3)
    with pytest.raises(IntegrityError, match=r"no tensor 'model\.layers\.2\.\S+'; fetch it again"):
        build(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"head_dim": 4},
        {"hidden_size": 64, "head_dim": 8},
        {"vocab_size": 80},
    ],
)
def test_weights_of_another_shape_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    """A graph that reads rows past its table would answer nonsense, or crash."""
    with pytest.raises(
        IntegrityError, match=r"tensor 'model\.\S+' is \d+ x \d+, and its .* settings"
    ):
        build(write(LLAMA, tmp_path, **changes))
