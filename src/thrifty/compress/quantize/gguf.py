"""Decoders as GGUF: floats, Q8_0, and llama.cpp's K-quants, these with an importance matrix.

The importance matrix says how strongly each column of a matrix is fed over calibration text; errors in
columns that are fed strongly then count for more. What was written is read back with our own reader and
compared with the floats, tensor by tensor, before it is registered.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import LAYER_MATRICES, load_decoder, name_in_gguf
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.gguf_vocabulary import check_same_tokens, read_tokenizer
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_gguf import (
    STRING,
    U32,
    GgufContent,
    GgufData,
    Value,
    count_bytes,
    encode_floats,
    read_content,
    write_gguf,
)
from thrifty.compress.calibration import collect_importance
from thrifty.compress.mix import Text, as_mix, read_tokens
from thrifty.compress.overlap import check_no_overlap
from thrifty.compress.quantize.ggml import PACKAGE, Ggml, find_library
from thrifty.compress.quantize.gguf_types import PLAIN, SCHEMES, Scheme, choose_types
from thrifty.errors import ArtifactError, CompressionError, FormatRefused, IntegrityError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, Format, OnProgress, Progress, ignore_progress

FloatArray = npt.NDArray[np.float32]

WINDOW = 512
CALIBRATION_TOKENS = 32_768
VERSION = 1
"""Raised when files are made otherwise, so that they are made anew."""
LEAST_IMPORTANCE = 1e-6
"""Of a column, over the mean: llama.cpp divides by sums of importances."""
MOST_ERROR = {"F32": 1e-12, "F16": 1e-4, "BF16": 1e-4, "Q8_0": 1e-3, "Q6_K": 1e-2, "Q5": 0.05,
              "Q4": 0.15, "Q3": 0.4}  # fmt: skip
"""Squared error over the squares of the floats, at most: some ten times what weights of language models
come to, and a fraction of what a matrix in a wrong order does (2)."""
_MATRICES = tuple(
    name_in_gguf(f"model.layers.0.{name}.weight").removeprefix("blk.0") for name in LAYER_MATRICES
)
"""How the names of layers' matrices end."""
QUANTIZATION_VERSION = 2
"""Of GGML's block formats; llama.cpp refuses files without it."""


@dataclass(frozen=True)
class Written:
    """What a GGUF came to, read back."""

    types: dict[str, int]
    """How many tensors have each type."""
    bits_per_weight: float
    """Over all matrices but the table and the head."""
    file_bits_per_weight: float
    """Over everything in the file."""
    worst_error: float
    """Of all matrices: squared error over the squares of the floats."""
    output_error: float | None
    """Mean over the matrices: squared error of outputs over their squares, as far as columns count each
    on its own; None without calibration."""

    def as_figures(self) -> dict[str, Any]:
        """As the lineage keeps it."""
        found = {
            "bits_per_weight": self.bits_per_weight,
            "file_bits_per_weight": self.file_bits_per_weight,
            "types": self.types,
            "worst_error": self.worst_error,
        }
        return found if self.output_error is None else {**found, "output_error": self.output_error}


def quantize_gguf(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    scheme: str,
    *,
    out: str,
    calibration: Text | None = None,
    held_out: Path | None = None,
    tokens: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact]:
    """The model as a GGUF under `scheme`, registered as `out`. Blocks.

    Args:
        store: Where models are kept.
        version: What to make smaller: a checkpoint, safetensors or GGUF.
        artifact: Its files.
        scheme: One of `gguf_types.SCHEMES`, such as `q8_0` or `q4_k_m`.
        out: The new model's name.
        calibration: Text to measure the importance of columns on; K-quants lose less with it.
        held_out: Text that the result will be judged by, which the other must not hold.
        tokens: How much of the calibration text is used.
        on_progress: Told of every step.

    Raises `CompressionError`, `FormatRefused` for what GGUF cannot express, and what the store raises.
    """
    chosen = _check_request(version, artifact, scheme, learns=calibration is not None)
    if calibration is not None and held_out is not None:
        check_no_overlap(calibration, held_out)
    tokens = tokens or CALIBRATION_TOKENS
    recipe: dict[str, Any] = {"step": "gguf", "quantize": scheme, "version": VERSION}
    if calibration is not None:
        recipe |= {"calibration_sha256": as_mix(calibration).sha256, "tokens": tokens}
    made = store.find_made(artifact.id, recipe)
    if made is not None and made[0].name == out:
        return made
    source = store.folder_of(artifact.id)
    content = read_content(source, version.name)
    types = choose_types(chosen, content.tensors, content.shape)
    needed = sum(count_bytes(tensor, types[tensor.name]) for tensor in content.tensors)
    store.require_space(needed + 20_000_000, f"quantizing {version.label}")
    with store.stage(f"gguf {artifact.id} {out}") as folder:
        target = folder / "model"
        for path in (target, folder / "tokenizer"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        path = target / f"{out}.gguf"
        try:
            _check_vocabulary(source, folder / "vocabulary.gguf", content)
            importance: dict[str, FloatArray] = {}
            if calibration is not None:
                write_tokenizer(source, folder / "tokenizer", artifact)
                tokenizer = TextTokenizer.load(folder / "tokenizer")
                importance = _measure(source, tokenizer, calibration, tokens, on_progress)
            notes = {
                "general.file_type": Value(chosen.file_type, U32),
                "general.quantization_version": Value(QUANTIZATION_VERSION, U32),
            }
            if calibration is not None:
                notes["quantize.imatrix.dataset"] = Value(as_mix(calibration).name, STRING)
                notes["quantize.imatrix.entries_count"] = Value(len(importance), U32)
            with ExitStack() as stack:
                encode = _choose_encoder(stack, types, importance)
                write_gguf(path, content, types, encode, notes, on_progress)
        except OSError as error:
            raise ArtifactError(f"the model could not be written to {path}: {error}") from None
        except OverflowError as error:
            raise FormatRefused(f"{error}; choose bf16, or fewer bits") from None
        figures = check_gguf(path, content, types, importance, on_progress).as_figures()
        check_same_tokens(path, _read_source_tokenizer(source))
        if any(kind not in PLAIN for kind in types.values()):
            figures["made_by"] = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        parents = (Parent(artifact.id, version.label),)
        lineage = Lineage(parents=parents, recipe=recipe, figures=figures)
        return store.add(target, out, lineage, on_progress=on_progress)


def _check_request(
    version: NamedVersion, artifact: Artifact, scheme: str, *, learns: bool
) -> Scheme:
    """The scheme of that name. Raises `CompressionError` where the model cannot be written so."""
    chosen = SCHEMES.get(scheme)
    if chosen is None:
        raise CompressionError(f"there is no GGUF of {scheme!r}; there are {', '.join(SCHEMES)}")
    if artifact.description.family is not Family.DECODER:
        raise CompressionError(
            f"{version.label} is {artifact.description.family.with_article}; decoders are written as GGUF"
        )
    if artifact.description.format is Format.OPENVINO:
        raise CompressionError(
            f"{version.label} is prepared for an engine already; take the checkpoint it was made from"
        )
    if chosen.usual in PLAIN and learns:
        raise CompressionError(f"{scheme} learns nothing from text; leave --text away")
    if chosen.usual not in PLAIN:
        find_library()
    return chosen


def check_gguf(
    path: Path,
    content: GgufContent,
    types: Mapping[str, int],
    importance: Mapping[str, FloatArray],
    on_progress: OnProgress = ignore_progress,
) -> Written:
    """Read a GGUF back. Raises `IntegrityError` unless it holds every tensor in its type, each near to its
    floats.
    """
    from gguf.constants import GGMLQuantizationType

    file = GgufFile(path)
    expected = {tensor.name: (tensor.shape, types[tensor.name]) for tensor in content.tensors}
    found = {name: (tensor.shape, tensor.ggml_type) for name, tensor in file.tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise IntegrityError(f"{path} was not written as it should be: {wrong}")
    bits = weights = 0
    worst, outputs = 0.0, list[float]()
    for index, tensor in enumerate(content.tensors):
        floats, read = tensor.read(), file.read_tensor(tensor.name)
        kind = GGMLQuantizationType(types[tensor.name]).name
        difference = read - floats
        size, error = float(np.vdot(floats, floats)), float(np.vdot(difference, difference))
        error = error / size if size else error
        if not error <= MOST_ERROR.get(kind, MOST_ERROR.get(kind[:2], 0)):
            raise IntegrityError(
                f"{tensor.name} lost {error:.2g} of its squares as {kind}, far more than that type "
                "should cost; the weights are unusual, or the quantizer is at fault"
            )
        worst = max(worst, error)
        columns = importance.get(tensor.name)
        if columns is not None:
            lost, whole = (float(((x**2) @ columns).sum()) for x in (difference, floats))
            outputs.append(lost / whole if whole else 0.0)
        if tensor.name.endswith(_MATRICES):
            bits += 8 * file.tensors[tensor.name].size_bytes
            weights += tensor.size
        on_progress(Progress("read back", index + 1, len(content.tensors), "tensors"))
    names = Counter(GGMLQuantizationType(kind).name for kind in types.values())
    size_bytes = sum(tensor.size_bytes for tensor in file.tensors.values())
    return Written(
        dict(names), bits / weights, 8 * size_bytes / file.parameters(), worst,
        float(np.mean(outputs)) if outputs else None,
    )  # fmt: skip


def _measure(
    source: Path,
    tokenizer: TextTokenizer,
    calibration: Text,
    tokens: int,
    on_progress: OnProgress,
) -> dict[str, FloatArray]:
    """The importance of columns, by GGUF's names. Its order of rotary dimensions turns rows, not columns."""
    windows = list(read_tokens(calibration, tokenizer, WINDOW, tokens))
    found = collect_importance(load_decoder(source), windows, on_progress)
    return {
        name_in_gguf(f"{name}.weight"): np.maximum(columns, LEAST_IMPORTANCE * columns.mean())
        for name, columns in found.items()
        if columns.any()
    }


def _choose_encoder(
    stack: ExitStack, types: Mapping[str, int], importance: Mapping[str, FloatArray]
) -> Callable[[str, FloatArray, int], npt.NDArray[np.uint8]]:
    """NumPy for the types that it makes, llama.cpp for the others."""
    if PLAIN.issuperset(types.values()):
        return encode_floats
    ggml = stack.enter_context(Ggml())

    def encode(name: str, values: FloatArray, kind: int) -> npt.NDArray[np.uint8]:
        if kind in PLAIN:
            return encode_floats(name, values, kind)
        return ggml.quantize(name, values, kind, importance.get(name))

    return encode


def _check_vocabulary(source: Path, path: Path, content: GgufContent) -> None:
    """Find out whether GGUF can keep the tokenizer before hours of work."""
    bare = GgufData(content.architecture, content.metadata, [])
    write_gguf(path, bare, {}, encode_floats, {})
    check_same_tokens(path, _read_source_tokenizer(source))
    path.unlink()


def _read_source_tokenizer(source: Path) -> Any:
    ggufs = sorted(source.glob("*.gguf"))
    return (
        build_tokenizer(GgufFile(ggufs[0])) if ggufs else read_tokenizer(source / "tokenizer.json")
    )
