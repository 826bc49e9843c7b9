"""From a stored checkpoint to a folder that a replica loads: a GGUF, its tokenizer, known answers.

A GGUF with weights as they are is linked, so that it takes no more disk. `int8` and `int4` are
written as Q8_0 and Q4_0, and safetensors as float16, without PyTorch. llama.cpp then loads the
result once: what it cannot load, or tokenizes otherwise than we do, is found here and not when a
replica starts.

    *.gguf                  the model, in one or several parts
    tokenizer.json ...      its tokenizer and chat templates, as the tokenizers library reads them
    known_answers.json      what replicas have to reproduce
    llamacpp.json           the note: facts that the adapter needs
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import FloatArray
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import BYTE_LEVEL_KINDS, build_tokenizer
from thrifty.artifacts.gguf_vocabulary import CHECK_TEXT
from thrifty.artifacts.inspect import find_ggufs
from thrifty.artifacts.stop_tokens import read_ends, read_gguf_ends
from thrifty.artifacts.tokenizer_files import (
    copy_tokenizer_files,
    write_gguf_tokenizer,
)
from thrifty.artifacts.write_gguf import (
    U32,
    FloatTensor,
    GgufData,
    Value,
    copy_content,
    encode_floats,
    read_content,
    write_gguf,
)
from thrifty.engines.known_answers import (
    MOST_TOKENS,
    PAIRS,
    TEXTS,
    TOP,
    KnownAnswers,
    KnownEmbedding,
    KnownLogit,
    KnownToken,
    list_known_pairs,
    write_known_answers,
)
from thrifty.engines.llamacpp.backend import find_whole_token, rank_known
from thrifty.engines.llamacpp.options import GGML_TYPES, SCHEMES
from thrifty.engines.llamacpp.process import LlamaProcess
from thrifty.engines.llamacpp.requests import EMBEDDINGS_PATH, RERANK_PATH, read_embeddings
from thrifty.engines.llamacpp.scoring import Scorer
from thrifty.engines.llamacpp.settings import WorkerSettings
from thrifty.errors import ArtifactError, EngineError, FormatRefused
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, Format, OnProgress, Progress

RECIPE_VERSION = 1
"""Raised when the result changes, so that models are prepared again."""
NOTE = "llamacpp.json"
TRIAL_CONTEXT = 512
POOLED = (1, 2, 3)
"""GGUF's numbers for pooling by the mean, the first or the last token."""
SEGMENTS = "token_types.weight"
"""GGUF's name for the table of kinds of segments."""
DIGITS = 3
"""Decimal places of known log-probabilities: far fewer than the tolerance needs."""
FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_0": 2}
"""What `general.file_type` says, by llama.cpp's numbers."""
_KEEPS_FLOATS = ("ffn_gate_inp", "ssm_", "conv", "time_mix", "pos_embd", "position_embd",
                 "token_types", "rel_b")  # fmt: skip
"""Parts of the names of matrices that llama.cpp computes in floats: small ones and routers."""


def make_recipe(scheme: str) -> dict[str, Any]:
    """What is done to the weights, as lineages record it."""
    return {"step": "llamacpp", "quantize": scheme, "version": RECIPE_VERSION}


def prepare_model(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    scheme: str,
    python: Path,
    threads: int,
    on_progress: OnProgress,
) -> tuple[NamedVersion, Artifact]:
    """The model with weights in `scheme`, ready for replicas; made now unless it was made before.

    `python` has llama.cpp, which tries the result with `threads`. Blocks. Raises `FormatRefused` and
    `EngineError` for what cannot be served.
    """
    recipe = make_recipe(scheme)
    made = store.find_made(artifact.id, recipe)
    if made is not None:
        return made
    links = scheme == "none" and artifact.description.format is Format.GGUF
    needed = 0 if links else artifact.description.parameters * SCHEMES[scheme].bytes_per_weight
    store.require_space(round(needed) + 50_000_000, f"preparing {version.label}")
    name = version.name if scheme == "none" else f"{version.name}-{scheme}"
    with store.stage(f"llamacpp {artifact.id} {json.dumps(recipe, sort_keys=True)}") as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        source = store.folder_of(artifact.id)
        try:
            if links:
                for path in find_ggufs(source):
                    _link(path, target / path.name)
            else:
                _write_weights(source, target / "model.gguf", version.name, scheme, on_progress)
            on_progress(Progress("load", 0, 0))
            asyncio.run(_finish(source, target, artifact, python, threads))
        except OSError as error:
            raise ArtifactError(f"the model could not be written to {target}: {error}") from None
        except OverflowError as error:
            raise FormatRefused(f"the weights do not fit 16 bits: {error}; choose int8") from None
        parents = (Parent(artifact.id, version.label),)
        lineage = Lineage(parents=parents, recipe=recipe)
        return store.add(target, f"{name}-llamacpp", lineage, on_progress=on_progress)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _write_weights(
    source: Path, path: Path, name: str, scheme: str, on_progress: OnProgress
) -> None:
    """Write the model in `source` with matrices in `scheme`."""
    from gguf.constants import GGMLQuantizationType

    ggufs = find_ggufs(source)
    data: GgufData
    data = copy_content([GgufFile(one) for one in ggufs]) if ggufs else read_content(source, name)
    kind = GGML_TYPES[scheme]
    tied = not any(tensor.name == "output.weight" for tensor in data.tensors)
    types = {
        tensor.name: int(GGMLQuantizationType[_choose_type(tensor, kind, tied=tied)])
        for tensor in data.tensors
    }
    more = {
        "general.file_type": Value(FILE_TYPES[kind], U32),
        "general.quantization_version": Value(2, U32),
    }
    write_gguf(path, data, types, _encode, more, on_progress)


def _choose_type(tensor: FloatTensor, kind: str, *, tied: bool) -> str:
    """The GGML type of one tensor. The table that is also the head keeps 8 bits at least."""
    name = tensor.name
    matrix = len(tensor.shape) > 1 and name.endswith("weight") and "_norm" not in name
    if not matrix or any(part in name for part in _KEEPS_FLOATS):
        return "F32"
    if kind != "F16" and tensor.shape[-1] % 32:
        return "F16"
    head = name == "output.weight" or (tied and name == "token_embd.weight")
    return "Q8_0" if head and kind == "Q4_0" else kind


def _encode(name: str, values: FloatArray, kind: int) -> npt.NDArray[np.uint8]:
    return encode_floats(name, values, kind)


async def _finish(
    source: Path, target: Path, artifact: Artifact, python: Path, threads: int
) -> None:
    """Load the GGUF in `target` once, and write beside it what replicas need. Raises `EngineError`,
    `FormatRefused`.
    """
    ggufs = find_ggufs(target)
    file = GgufFile(ggufs[0])
    family = artifact.description.family
    if family is Family.ENCODER:
        _refuse_pooling(file)
    settings = WorkerSettings(
        model=str(ggufs[0]), threads=threads, slots=1, prefix_cache=False,
        embeds=family is Family.ENCODER, ranks=family is Family.RERANKER,
        context=min(TRIAL_CONTEXT, artifact.description.context_length or TRIAL_CONTEXT),
    )  # fmt: skip
    process = LlamaProcess(python, settings)
    try:
        await process.start()
        tokenizer = await _write_tokenizer(source, target, artifact, file, process)
        if family is Family.RERANKER:
            known = await _rank(process, tokenizer, file)
        else:
            known = await (_embed if family is Family.ENCODER else _answer)(process, tokenizer)
    finally:
        await process.stop()
    write_known_answers(target, known)
    if family is not Family.DECODER:
        length = int(file.get("context_length", 0))
        _write_note(
            target, {"context_length": length, "kv_values_per_token": 0, "eos_token_ids": []}
        )
        return
    ends = [
        *_read_named_ends(file),
        *(() if artifact.description.format is Format.GGUF else read_ends(source)),
        *read_gguf_ends(file.metadata, file.path),
        *tokenizer.find_turn_ends(),
    ]
    note = {
        "context_length": int(file.get("context_length", 0)),
        "eos_token_ids": list(dict.fromkeys(ends)),
        "kv_values_per_token": count_kv_values(file),
    }
    _write_note(target, note)


def _write_note(target: Path, note: dict[str, Any]) -> None:
    (target / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def _refuse_pooling(file: GgufFile) -> None:
    """Raise `FormatRefused` for a GGUF that does not embed whole texts."""
    if int(file.get("pooling_type", 0)) not in POOLED:
        raise FormatRefused(
            f"{file.path} does not say how the tokens of a text are pooled into its embedding; convert "
            "the model again, with its pooling, or use its safetensors with the engine 'openvino'"
        )


async def _embed(process: LlamaProcess, tokenizer: TextTokenizer) -> KnownAnswers:
    """The embeddings of the texts of the known-answer test, as llama.cpp computes them here."""
    prompts = [tokenizer.encode(text)[:MOST_TOKENS] for text in TEXTS]
    answer = await process.ask(EMBEDDINGS_PATH, {"input": prompts})
    known = []
    for prompt, data in zip(prompts, read_embeddings(answer, len(prompts)), strict=True):
        vector = np.frombuffer(data, "<f4")
        if not np.isfinite(vector).all() or not vector.any():
            raise EngineError("the model's embeddings are no finite numbers; fetch it again")
        known.append(KnownEmbedding(prompt, [round(float(one), DIGITS) for one in vector]))
    return KnownAnswers(embeddings=known)


async def _rank(process: LlamaProcess, tokenizer: TextTokenizer, file: GgufFile) -> KnownAnswers:
    """The logits of the pairs of the known-answer test, as llama.cpp computes them here. Raises
    `FormatRefused` where llama.cpp gives the model another input than it was trained on.
    """
    pairs = list_known_pairs(tokenizer, TRIAL_CONTEXT)
    kinds = file.read_tensor(SEGMENTS) if SEGMENTS in file.tensors else np.zeros((1, 1))
    if any(at < len(ids) for ids, at in pairs) and not (kinds == kinds[0]).all():
        raise FormatRefused(
            f"{file.path} tells query and document apart by kinds of segments, and llama.cpp takes "
            "every token for the first kind, so that it orders documents wrongly; serve the model's "
            "safetensors with the engine 'openvino'"
        )
    for (query, document), (ids, _) in zip(PAIRS, pairs, strict=True):
        answer = await process.ask(RERANK_PATH, {"query": query, "documents": [document]})
        if answer["usage"]["prompt_tokens"] != len(ids):
            raise FormatRefused(
                f"llama.cpp joins query and document by other tokens than the tokenizer of {file.path} "
                "does; serve the model's safetensors with the engine 'openvino'"
            )
    logits = await rank_known(process)
    if not np.isfinite(logits).all():
        raise EngineError("the model's logits are no finite numbers; fetch it again")
    return KnownAnswers(
        logits=[
            KnownLogit(ids, at, round(logit, DIGITS))
            for (ids, at), logit in zip(pairs, logits, strict=True)
        ]
    )


def _read_named_ends(file: GgufFile) -> list[int]:
    """The stop tokens that the metadata name."""
    names = ("eos", "eot", "eom")
    found = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    return [int(token) for token in found if token is not None]


def count_kv_values(file: GgufFile) -> int:
    """How many numbers one token takes in the KV cache; 0 where the metadata do not say."""
    layers, heads = int(file.get("block_count", 0)), file.get("attention.head_count", 0)
    most = max(heads) if isinstance(heads, list) else int(heads)
    kv_heads = file.get("attention.head_count_kv", heads)
    total = sum(kv_heads) if isinstance(kv_heads, list) else layers * int(kv_heads)
    width = int(file.get("embedding_length", 0)) // max(1, most)
    keys = int(file.get("attention.key_length", width))
    return int(total * (keys + int(file.get("attention.value_length", width))))


async def _write_tokenizer(
    source: Path, target: Path, artifact: Artifact, file: GgufFile, process: LlamaProcess
) -> TextTokenizer:
    """Write the tokenizer that cuts text as llama.cpp does. Raises `FormatRefused`."""
    if artifact.description.format is not Format.GGUF:
        copy_tokenizer_files(source, target)
        kinds: tuple[str | None, ...] = ()
        await _check_tokens(TextTokenizer.load(target), file, process)
        return TextTokenizer.load(target)
    # A pre-tokenizer that we do not know by its name may be one of those that we know.
    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    named = file.metadata.get("tokenizer.ggml.model") != "gpt2" or pre in BYTE_LEVEL_KINDS
    kinds = (None,) if named or pre == "default" else BYTE_LEVEL_KINDS
    for kind in kinds:
        write_gguf_tokenizer(file, build_tokenizer(file, pre=kind), target, source)
        tokenizer = TextTokenizer.load(target)
        try:
            await _check_tokens(tokenizer, file, process)
        except FormatRefused:
            if kind == kinds[-1]:
                raise
        else:
            return tokenizer
    raise AssertionError


async def _check_tokens(tokenizer: TextTokenizer, file: GgufFile, process: LlamaProcess) -> None:
    """Raise `FormatRefused` where llama.cpp cuts a text otherwise. It composes no characters, as Qwen's
    tokenizer does; prompts come to it as our tokens, so that this does no harm.
    """
    for text in (*TEXTS, unicodedata.normalize("NFC", CHECK_TEXT)):
        body = {"content": text, "add_special": True, "parse_special": True}
        theirs = (await process.ask("/tokenize", body))["tokens"]
        if theirs != tokenizer.encode(text):
            kind = file.metadata.get("tokenizer.ggml.pre") or file.metadata["tokenizer.ggml.model"]
            raise FormatRefused(
                f"the tokenizer of the model (of the kind {kind!r}) is one that Thrifty cannot "
                "reproduce: llama.cpp cuts the same text into other tokens. Serve it with "
                "llama-server by itself, and use it through the engine 'remote'"
            )


async def _answer(process: LlamaProcess, tokenizer: TextTokenizer) -> KnownAnswers:
    """Next tokens behind the prompts of the known-answer test, as llama.cpp computes them here."""
    scorer = Scorer(
        process,
        vocabulary_size=tokenizer.vocabulary_size,
        whole_token=find_whole_token(tokenizer),
    )
    known = []
    for text in TEXTS:
        prompt = tokenizer.encode(text)[:MOST_TOKENS]
        ranked = await scorer.find_next(prompt, TOP)
        if not ranked or not np.isfinite([logprob for _, logprob in ranked[:1]]).all():
            raise EngineError("the model's answers are no finite numbers; fetch it again")
        tokens, logprobs = zip(*ranked, strict=True)
        known.append(KnownToken(prompt, list(tokens), [round(one, DIGITS) for one in logprobs]))
    return KnownAnswers(tokens=known)
