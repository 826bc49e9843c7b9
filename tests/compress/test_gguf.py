"""GGUF in fewer bits: the types that llama.cpp would choose, made by its own code, read back."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.models import Llama
from tests.artifacts.stored import SOURCE
from tests.artifacts.test_gguf_tokenizer import make_reference
from tests.compress.test_openvino import WINDOWS
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.checkpoint import DecoderShape, load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.write_gguf import FloatTensor, encode_floats, read_content, write_gguf
from thrifty.compress.calibration import collect_importance, collect_inputs
from thrifty.compress.quantize import ggml, gguf_types
from thrifty.compress.quantize.ggml import Ggml
from thrifty.compress.quantize.gguf import check_gguf, quantize_gguf
from thrifty.compress.quantize.gguf_types import SCHEMES, choose_types
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.errors import CompressionError, IntegrityError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.types import Format, ignore_progress

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp"
)
MODEL = Llama(
    vocab=400, layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, inner=256, context=256
)
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q3_K": 11, "Q4_K": 12,
         "Q5_K": 13, "Q6_K": 14}  # fmt: skip
NAMES = {number: name for name, number in TYPES.items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("gguf") / "models")


@pytest.fixture(scope="module")
def made(store: Store) -> tuple[NamedVersion, Artifact]:
    with store.stage("tiny") as stage:
        folder = MODEL.write_safetensors(stage / "model")
        make_reference("smollm").save(str(folder / "tokenizer.json"))
        return store.add(folder, "tiny", SOURCE)


def write_words(path: Path, count: int, seed: int) -> Path:
    """Text of words that the tokenizer has tokens for."""
    words = ["The", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "isn't", "it's"]
    picked = np.random.default_rng(seed).integers(0, len(words), count)
    path.write_text(" ".join(words[i] for i in picked))
    return path


# which type each tensor gets


def types_of(scheme: str, layers: int, hidden: int, inner: int, *, tied: bool) -> dict[str, str]:
    shape = DecoderShape("llama", layers, hidden, 8, 2, hidden // 8, 1000, 512, 1e-5, 1e4)
    sizes = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (hidden // 4, hidden),
        "attn_v": (hidden // 4, hidden),
        "attn_output": (hidden, hidden),
        "ffn_up": (inner, hidden),
        "ffn_gate": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    named = {f"blk.{n}.{part}.weight": size for n in range(layers) for part, size in sizes.items()}
    named |= {"token_embd.weight": (1000, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        named["output.weight"] = (1000, hidden)
    tensors = [FloatTensor(name, size, lambda: np.zeros(1)) for name, size in named.items()]
    found = choose_types(SCHEMES[scheme], tensors, shape)
    return {name: NAMES[kind] for name, kind in found.items()}


# Counts are those of llama.cpp's own quantizer (node-llama-cpp 3.22.1), run once on models of these
# shapes; what it wrote was what is written here, byte by byte.
@pytest.mark.parametrize(
    ("scheme", "layers", "hidden", "inner", "tied", "expected"),
    [
        ("q4_k_m", 30, 576, 1536, True, {"Q5_0": 166, "Q8_0": 15, "Q6_K": 14, "Q4_K": 16}),
        ("q6_k", 16, 512, 1024, False, {"Q6_K": 114}),
        ("q8_0", 16, 512, 1024, False, {"Q8_0": 114}),
        ("q5_k_m", 16, 512, 1024, False, {"Q6_K": 17, "Q5_K": 97}),
        ("q5_k_s", 16, 512, 1024, False, {"Q6_K": 1, "Q5_K": 113}),
        ("q4_k_m", 16, 512, 1024, False, {"Q6_K": 17, "Q4_K": 97}),
        ("q4_k_s", 16, 512, 1024, False, {"Q6_K": 1, "Q4_K": 107, "Q5_K": 6}),
        ("q3_k_m", 16, 512, 1024, False, {"Q6_K": 1, "Q3_K": 65, "Q4_K": 45, "Q5_K": 3}),
        ("q6_k", 4, 576, 1536, True, {"Q8_0": 25, "Q6_K": 4}),
        ("q5_k_m", 4, 576, 1536, True, {"Q8_0": 3, "Q5_1": 22, "Q5_K": 2, "Q6_K": 2}),
        ("q4_k_s", 4, 576, 1536, True, {"Q8_0": 1, "Q5_0": 20, "Q5_1": 4, "Q4_K": 4}),
        ("q3_k_m", 4, 576, 1536, True, {"Q8_0": 1, "Q4_0": 16, "Q5_0": 6, "Q5_1": 2, "Q4_K": 4}),
    ],
)
def test_types_are_those_of_llama_cpp(
    scheme: str, layers: int, hidden: int, inner: int, tied: bool, expected: dict[str, int]
) -> None:
    found = types_of(scheme, layers, hidden, inner, tied=tied)
    kinds = Counter(kind for name, kind in found.items() if "norm" not in name)
    assert dict(kinds) == expected
    assert {kind for name, kind in found.items() if "norm" in name} == {"F32"}


def test_layers_that_matter_get_more_bits() -> None:
    found = types_of("q4_k_m", 16, 512, 1024, tied=True)
    more = [n for n in range(16) if found[f"blk.{n}.ffn_down.weight"] == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert more == [n for n in range(16) if found[f"blk.{n}.attn_v.weight"] == "Q6_K"]


def test_columns_that_no_block_divides_stay_in_16_bits() -> None:
    """llama.cpp refuses them for Q8_0."""
    for scheme in ("q8_0", "q4_k_m"):
        found = types_of(scheme, 2, 40, 72, tied=True)
        assert {kind for name, kind in found.items() if "norm" not in name} == {"F16"}


def test_big_llamas_get_more_bits_for_values() -> None:
    found = types_of("q4_k_m", 80, 512, 1024, tied=False)
    assert {found[f"blk.{n}.attn_v.weight"] for n in range(80)} == {"Q5_K", "Q6_K"}


# what is made


@pytest.mark.engine
def test_importance_is_the_diagonal_of_the_inputs(store: Store, made: Any) -> None:
    checkpoint = load_decoder(store.folder_of(made[1].id))
    inputs = collect_inputs(checkpoint, WINDOWS)
    importance = collect_importance(checkpoint, WINDOWS)
    assert set(importance) == set(inputs)
    for name, columns in importance.items():
        np.testing.assert_allclose(columns, np.diag(inputs[name]), rtol=1e-4, atol=1e-6)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("q8_0", 8.5),
        pytest.param("q6_k", 7.9, marks=needs_llama_cpp),
        pytest.param("q4_k_m", 5.6, marks=needs_llama_cpp),
    ],
)
def test_what_is_made_is_registered_served_and_evaluated(
    store: Store, made: Any, tmp_path: Path, scheme: str, bits: float
) -> None:
    out = f"tiny-{scheme}"
    version, artifact = quantize_gguf(store, *made, scheme, out=out)
    assert (version.name, artifact.description.format) == (out, Format.GGUF)
    assert version.lineage.parents[0].id == made[1].id
    assert version.lineage.recipe["quantize"] == scheme
    figures = version.lineage.figures
    assert figures["bits_per_weight"] == pytest.approx(bits, abs=0.3)
    assert sum(figures["types"].values()) == len(MODEL.make_tensors())
    assert quantize_gguf(store, *made, scheme, out=out)[0] == version
    held_out = write_words(tmp_path / "held.txt", 500, seed=9)
    found = evaluate(
        out,
        "tiny@v1",
        EvaluationOptions(text=held_out, window=128),
        store=store,
        folder=tmp_path / "e",
    ).divergence
    assert found is not None
    # Random weights are sensitive: the same weights alone, computed as they are served, come to 0.01.
    worst = {"q8_0": 0.1, "q6_k": 0.1, "q4_k_m": 2}[scheme]
    assert found.kl_divergence.mean < worst
    # As `thrifty up` prepares it.
    served, _ = prepare_model(store, version, artifact, "int8", ignore_progress)
    assert served.lineage.parents[0].id == artifact.id


@needs_llama_cpp
@pytest.mark.engine
def test_importance_makes_outputs_err_less(store: Store, made: Any, tmp_path: Path) -> None:
    text = write_words(tmp_path / "calibration.txt", 4000, seed=5)
    held_out = write_words(tmp_path / "held.txt", 100, seed=5)
    with pytest.raises(CompressionError, match="use other text to learn from"):
        quantize_gguf(store, *made, "q4_k_m", out="x", calibration=text, held_out=held_out)
    version, artifact = quantize_gguf(
        store, *made, "q4_k_m", out="weighed", calibration=text, tokens=2048
    )
    file = GgufFile(store.folder_of(artifact.id) / "weighed.gguf")
    assert file.metadata["quantize.imatrix.entries_count"] == 7 * MODEL.layers
    assert file.metadata["general.file_type"] == SCHEMES["q4_k_m"].file_type
    plain = quantize_gguf(store, *made, "q4_k_m", out="unweighed")
    # The same measure for both: outputs over the calibration text.
    source = store.folder_of(made[1].id)
    content = read_content(source, "tiny")
    types = choose_types(SCHEMES["q4_k_m"], content.tensors, content.shape)
    from thrifty.compress.quantize.gguf import _measure
    from thrifty.text.tokenizer import TextTokenizer

    importance = _measure(source, TextTokenizer.load(source), text, 2048, ignore_progress)
    other = store.folder_of(plain[1].id) / "unweighed.gguf"
    before = check_gguf(other, content, types, importance).output_error
    after = check_gguf(file.path, content, types, importance).output_error
    assert before is not None
    assert after is not None
    assert after == pytest.approx(version.lineage.figures["output_error"])
    assert after < 0.95 * before


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_rows_are_quantized_each_on_its_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces and by threads as at once; and Q8_0 as NumPy has it."""
    values = np.random.default_rng(3).standard_normal((37, 512)).astype(np.float32)
    columns = np.random.default_rng(4).random(512).astype(np.float32)
    with Ggml() as whole:
        expected = whole.quantize("w", values, TYPES[kind], columns)
        monkeypatch.setattr(ggml, "PIECE_BYTES", 5 * 4 * 512)
        np.testing.assert_array_equal(whole.quantize("w", values, TYPES[kind], columns), expected)
    if kind == "Q8_0":
        np.testing.assert_array_equal(encode_floats("w", values, TYPES[kind]), expected)


# what goes wrong


@needs_llama_cpp
def test_a_crash_in_c_is_an_error() -> None:
    """257 columns are no whole blocks, which ggml asserts and ends its process for."""
    with (
        Ggml() as library,
        pytest.raises(CompressionError, match=r"ended while it quantized blk\.0"),
    ):
        library.quantize("blk.0.x", np.ones((8, 257), np.float32), TYPES["Q4_K"])


@needs_llama_cpp
def test_a_worker_that_is_killed_is_an_error() -> None:
    with Ggml() as library:
        library.quantize("w", np.ones((8, 256), np.float32), TYPES["Q4_K"])
        os.kill(library._worker.pid, signal.SIGKILL)
        with pytest.raises(CompressionError, match="while it quantized w: signal 9"):
            library.quantize("w", np.ones((8, 256), np.float32), TYPES["Q4_K"])


@needs_llama_cpp
def test_weights_that_are_no_numbers_are_named() -> None:
    with (
        Ggml() as library,
        pytest.raises(IntegrityError, match="'w' has a weight that is no finite"),
    ):
        library.quantize("w", np.full((1, 256), np.nan, np.float32), TYPES["Q4_K"])


def test_a_library_without_ggml_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "none.so"
    path.write_bytes(b"not a library")
    with Ggml(path) as library, pytest.raises(CompressionError, match="exit code 1; OSError"):
        library.quantize("w", np.ones((1, 256), np.float32), TYPES["Q4_K"])


def test_the_next_step_is_said_where_llama_cpp_is_not_there(
    store: Store, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ggml, "PACKAGE", "no_such_package")
    with pytest.raises(CompressionError, match=r"pip install 'thrifty\[gguf\]'"):
        quantize_gguf(store, *made, "q4_k_m", out="x")
    quantize_gguf(store, *made, "bf16", out="needs-none")


def test_what_learns_nothing_takes_no_text(store: Store, made: Any, tmp_path: Path) -> None:
    text = write_words(tmp_path / "c.txt", 100, seed=1)
    with pytest.raises(CompressionError, match="q8_0 learns nothing from text"):
        quantize_gguf(store, *made, "q8_0", out="x", calibration=text)
    with pytest.raises(CompressionError, match="no GGUF of 'q9_k'; there are f32, f16"):
        quantize_gguf(store, *made, "q9_k", out="x")


@pytest.mark.engine
def test_prepared_models_are_refused(store: Store, made: Any) -> None:
    prepared = prepare_model(store, *made, "int8", ignore_progress)
    with pytest.raises(CompressionError, match="take the checkpoint it was made from"):
        quantize_gguf(store, *prepared, "q8_0", out="x")


def test_what_is_not_what_was_meant_is_noticed(store: Store, made: Any, tmp_path: Path) -> None:
    content = read_content(store.folder_of(made[1].id), "tiny")
    types = choose_types(SCHEMES["q8_0"], content.tensors, content.shape)
    path = tmp_path / "m.gguf"

    def write(change: Any) -> None:
        def encode(name: str, values: Any, kind: int) -> Any:
            return encode_floats(name, change(name, values), kind)

        write_gguf(path, content, types, encode, {})

    write(lambda name, values: values)
    assert check_gguf(path, content, types, {}).worst_error < 1e-3
    with pytest.raises(IntegrityError, match="was not written as it should be"):
        check_gguf(path, content, {**types, "blk.1.ffn_up.weight": gguf_types.F16}, {})
    write(lambda name, values: values[::-1] if name == "blk.1.ffn_up.weight" else values)
    with pytest.raises(IntegrityError, match=r"blk\.1\.ffn_up\.weight lost 2"):
        check_gguf(path, content, types, {})


@needs_llama_cpp
def test_sigkill_leaves_nothing_behind_and_the_next_try_succeeds(
    store: Store, made: Any, tmp_path: Path
) -> None:
    code = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom thrifty.artifacts import Store\n"
        "from thrifty.compress.quantize.gguf import quantize_gguf\n"
        "store = Store(Path(sys.argv[1]))\n"
        "def kill(step):\n"
        "    if step.step == 'write' and step.done > step.total / 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "quantize_gguf(store, *store.find('tiny@v1'), 'q5_k_m', out='killed', on_progress=kill)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(store.root)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not store.has_name("killed")
    version, artifact = quantize_gguf(store, *made, "q5_k_m", out="killed")
    store.verify(artifact, thorough=True)
    assert version.label == "killed@v1"
