"""From a stored checkpoint to a folder that OpenVINO GenAI loads, in seconds and without PyTorch.

The folder holds the graph (`openvino_model.xml`, `.bin`), the tokenizer for the tokenizers library,
a detokenizer that GenAI needs for structured output, a tiny model to compile grammars with
(`grammar/`), known answers that replicas have to reproduce (`known_answers.json`), and
`thrifty.json`, which describes the model.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino.preprocess import PrePostProcessor
from tokenizers import Tokenizer

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.bases import find_base
from thrifty.artifacts.checkpoint import DecoderCheckpoint, DecoderShape, FloatArray, load_decoder
from thrifty.artifacts.embedding_sizes import read_smaller_sizes
from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.artifacts.inspect import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    OPENVINO_NOTE,
    read_json,
)
from thrifty.artifacts.lora import ADAPTER_FOLDER
from thrifty.artifacts.tokenizer_files import (
    copy_tokenizer_files,
    drop_missing_tokens,
    write_tokenizer,
)
from thrifty.engines.known_answers import FILE as KNOWN_ANSWERS
from thrifty.engines.openvino.make_known_answers import make_known_answers
from thrifty.engines.openvino.processor import SCHEMES
from thrifty.errors import ArtifactError, FormatRefused
from thrifty.graphs.decoder import build_decoder
from thrifty.graphs.encoder import build_encoder
from thrifty.graphs.weights import Weights, choose_activation_group
from thrifty.text.tokenizer import TextTokenizer
from thrifty.text.vocabulary import read_vocabulary
from thrifty.types import Family, Format, OnProgress

RECIPE_VERSION = 7
"""Raised when the result changes, so that models are prepared again."""


def make_recipe(scheme: str) -> dict[str, Any]:
    """What is done to the weights, as lineages record it."""
    return {"step": "openvino", "quantize": scheme, "version": RECIPE_VERSION}


def prepare_model(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    scheme: str,
    on_progress: OnProgress,
    *,
    weights: Weights | None = None,
    checkpoint: DecoderCheckpoint | None = None,
    recipe: dict[str, Any] | None = None,
    out: str | None = None,
    figures: dict[str, Any] | None = None,
) -> tuple[NamedVersion, Artifact]:
    """The model as OpenVINO IR with weights in `scheme`; made now unless it was made before.

    `weights` stores a decoder's weights in its own way, and `checkpoint` replaces the model's own;
    `recipe` then describes both. `out` names the result, and `figures` were measured of it. Blocks.
    Raises `FormatRefused` for what cannot be converted.
    """
    recipe = recipe or make_recipe(scheme)
    made = store.find_made(artifact.id, recipe)
    if made is not None and out in (None, made[0].name):
        return made
    needed = round(artifact.description.parameters * SCHEMES[scheme].bytes_per_weight)
    own = weights is None and checkpoint is None
    adapted = own and artifact.description.format is Format.ADAPTER
    if adapted:
        needed = artifact.size_bytes
    store.require_space(needed + 50_000_000, f"preparing {version.label}")
    name = version.name if scheme == "none" else f"{version.name}-{scheme}"
    base = None
    if adapted:
        base = prepare_model(store, *find_base(store, artifact), scheme, on_progress)[1]
    with store.stage(f"openvino {artifact.id} {json.dumps(recipe, sort_keys=True)}") as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        source = store.folder_of(artifact.id)
        try:
            if base is not None:
                _write_adapted(store.folder_of(base.id), source, target, artifact)
            elif artifact.description.family is not Family.DECODER:
                _write_encoder(source, target, artifact, scheme, on_progress)
            else:
                _write_decoder(source, target, artifact, scheme, weights, checkpoint, on_progress)
        except OSError as error:
            raise ArtifactError(f"the model could not be written to {target}: {error}") from None
        except OverflowError as error:
            other = "; choose int8" if scheme != "int8" else ""
            raise FormatRefused(f"the weights do not fit 16 bits: {error}{other}") from None
        except RuntimeError as error:
            # OpenVINO tells of a full disk, too, as a RuntimeError.
            raise ArtifactError(f"OpenVINO could not convert {version.label}: {error}") from None
        parents = (Parent(artifact.id, version.label),)
        lineage = Lineage(parents=parents, recipe=recipe, figures=figures or {})
        return store.add(target, out or f"{name}-openvino", lineage, on_progress=on_progress)


def _write_decoder(
    source: Path,
    target: Path,
    artifact: Artifact,
    scheme: str,
    weights: Weights | None,
    checkpoint: DecoderCheckpoint | None,
    on_progress: OnProgress,
) -> None:
    write_tokenizer(source, target, artifact)
    checkpoint = checkpoint or load_decoder(source)
    shape = checkpoint.shape
    tokenizer = drop_missing_tokens(target, shape.vocab_size)
    model = build_decoder(checkpoint, weights or scheme, on_progress)
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    eos = _find_ends(shape, tokenizer, target)
    config = {
        "architectures": [shape.architecture],
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": eos[0] if eos else None,
        "pad_token_id": shape.pad_token_id,
        "max_position_embeddings": shape.context_length,
    }
    _write_json(target / "config.json", {k: v for k, v in config.items() if v is not None})
    _write_detokenizer(tokenizer, shape.vocab_size, eos, target)
    write_grammar_model(shape.vocab_size, target / "grammar")
    _write_note(
        target, artifact, scheme, shape.context_length,
        {
            "eos_token_ids": list(eos), "kv_bytes_per_token": kv_bytes_per_token(shape),
            "activation_group": choose_activation_group(model),
        },
    )  # fmt: skip
    make_known_answers(target, Family.DECODER, shape.context_length)


def _write_adapted(base: Path, source: Path, target: Path, artifact: Artifact) -> None:
    """Write a prepared base with an adapter: the same files, which the store keeps once, and the
    adapter beside them.
    """
    shutil.copytree(
        base, target, dirs_exist_ok=True, copy_function=os.link,
        ignore=shutil.ignore_patterns("artifact.json", OPENVINO_NOTE, KNOWN_ANSWERS, ADAPTER_FOLDER),
    )  # fmt: skip
    (target / ADAPTER_FOLDER).mkdir()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(source / name, target / ADAPTER_FOLDER / name)
    note = read_json(base / OPENVINO_NOTE)
    note["parameters"] = artifact.description.parameters
    _write_json(target / OPENVINO_NOTE, note)
    make_known_answers(target, Family.DECODER, int(note["context_length"]))


def _write_encoder(
    source: Path, target: Path, artifact: Artifact, scheme: str, on_progress: OnProgress
) -> None:
    if not (source / "tokenizer.json").exists():
        raise FormatRefused("the checkpoint has no tokenizer.json; save its fast tokenizer with it")
    copy_tokenizer_files(source, target)
    checkpoint = load_encoder(source)
    model = build_encoder(checkpoint, scheme, on_progress)
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    note: dict[str, Any] = {"activation_group": choose_activation_group(model)}
    if artifact.description.family is Family.ENCODER:
        size = checkpoint.shape.hidden_size
        note |= {"embedding_size": size, "smaller_sizes": read_smaller_sizes(source, size)}
    _write_note(target, artifact, scheme, checkpoint.shape.context_length, note)
    make_known_answers(target, artifact.description.family, checkpoint.shape.context_length)


def kv_bytes_per_token(shape: DecoderShape, precision: str = "u8") -> int:
    """Bytes that one token takes in the KV cache.

    In 8 bits, values have a scale and a zero point (float32) for each token, and keys have one pair
    for each channel of a block of 32 tokens.
    """
    if precision == "u8":
        per_head = shape.head_dim * (1 + 8 / 32) + (shape.head_dim + 8)
    else:
        per_head = 2 * 2 * shape.head_dim
    return round(shape.layers * shape.kv_heads * per_head)


def _find_ends(shape: DecoderShape, tokenizer: Tokenizer, target: Path) -> tuple[int, ...]:
    """The stop tokens: those that the checkpoint's files name, and those that its chat templates,
    which are in `target` by now, write behind an answer.
    """
    written = TextTokenizer.load(target).find_turn_ends()
    found = dict.fromkeys((*shape.eos_token_ids, *written))
    return tuple(end for end in found if end < shape.vocab_size) or _guess_eos(tokenizer)


def _guess_eos(tokenizer: Tokenizer) -> tuple[int, ...]:
    for token in ("<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"):
        token_id = tokenizer.token_to_id(token)
        if token_id is not None:
            return (token_id,)
    return ()


def _write_note(
    target: Path, artifact: Artifact, scheme: str, context_length: int, more: dict[str, Any]
) -> None:
    description = artifact.description
    _write_json(
        target / OPENVINO_NOTE,
        {
            "family": description.family.value,
            "architecture": description.architecture,
            "context_length": context_length,
            "parameters": description.parameters,
            "weights": "f16" if scheme == "none" else scheme,
            **more,
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


# The detokenizer, from which GenAI reads the vocabulary for grammars


def _write_detokenizer(
    tokenizer: Tokenizer, vocab_size: int, eos: tuple[int, ...], target: Path
) -> None:
    from openvino_tokenizers.tokenizer_pipeline import (
        FuseStep,
        TokenizerPipeline,
        VocabDecoderStep,
    )

    pipeline = TokenizerPipeline()
    skipped = sorted(tokenizer.get_added_tokens_decoder()) or list(eos) or [0]
    pipeline.add_steps(
        [VocabDecoderStep(read_vocabulary(tokenizer, vocab_size), skipped), FuseStep()]
    )
    processor = PrePostProcessor(pipeline.get_detokenizer_ov_subgraph())
    processor.input(0).tensor().set_element_type(ov.Type.i64)
    model = processor.build()
    if eos:
        model.set_rt_info(eos[0], "eos_token_id")
    model.set_rt_info("thrifty", "openvino_tokenizers_version")
    ov.save_model(model, target / "openvino_detokenizer.xml", compress_to_fp16=False)


# The tiny model that grammars are compiled with


class _Zeros:
    """Zero weights, in the smallest shape that the engine accepts."""

    def __init__(self, vocab_size: int, width: int) -> None:
        self._vocab_size = vocab_size
        self._width = width

    def __contains__(self, name: str) -> bool:
        return name.endswith(("_proj.weight", "layernorm.weight", "embed_tokens.weight"))

    def read_tensor(self, name: str) -> FloatArray:
        if "norm" in name:
            return np.ones(self._width, dtype=np.float32)
        rows = self._vocab_size if "embed_tokens" in name else self._width
        return np.zeros((rows, self._width), dtype=np.float32)


def write_grammar_model(vocab_size: int, target: Path) -> None:
    """Write a model with this vocabulary and hardly anything else."""
    width = 32
    shape = DecoderShape(
        architecture="none", layers=1, hidden_size=width, heads=1, kv_heads=1, head_dim=width,
        vocab_size=vocab_size, context_length=64, norm_epsilon=1e-5, rope_theta=10_000.0,
    )  # fmt: skip
    model = build_decoder(DecoderCheckpoint(shape, _Zeros(vocab_size, width)), "int8")
    target.mkdir()
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
