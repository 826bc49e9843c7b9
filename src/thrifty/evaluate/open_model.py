"""Open the model that a user names, for evaluation."""

from __future__ import annotations

import hashlib
import json

from thrifty.artifacts import Artifact, Store
from thrifty.artifacts.chat_templates import read_chat_templates, read_gguf_templates
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.sources import fetch_model
from thrifty.errors import EvaluationError
from thrifty.evaluate.backends import DEFAULT_BACKEND, find_backend
from thrifty.evaluate.embedder import Embedder
from thrifty.evaluate.scorer import Scorer
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, Format, OnProgress, ignore_progress


def is_url(model: str) -> bool:
    """Whether a model is named by the URL where it is served."""
    return model.startswith(("http://", "https://"))


def open_model(
    model: str,
    store: Store,
    *,
    exact: bool = False,
    backend: str = DEFAULT_BACKEND,
    kv_precision: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Scorer:
    """Open a decoder: a stored name, a source, a folder or a file. Blocks.

    `exact` computes in float32. `kv_precision` computes attention over a KV cache of this
    precision, as served. Checkpoints (GGUF or safetensors) are first converted to a graph with
    16-bit weights, unless `backend` is `torch`. Raises `ThriftyError` and its subclasses.
    """
    version, artifact = fetch_model(store, model, on_progress=on_progress)
    if artifact.description.family is not Family.DECODER:
        raise EvaluationError(
            f"{version.label} is {artifact.description.family.with_article}, which predicts no next "
            "tokens; its reference must be one too, and rerankers are not evaluated"
        )
    return find_backend(backend).open_decoder(
        store, version, artifact, exact=exact, kv_precision=kv_precision, on_progress=on_progress
    )


def is_encoder(model: str, store: Store, on_progress: OnProgress = ignore_progress) -> bool:
    """Whether a model is an encoder. Fetches it if it is not stored yet."""
    _, artifact = fetch_model(store, model, on_progress=on_progress)
    return artifact.description.family is Family.ENCODER


def open_encoder(
    model: str,
    store: Store,
    *,
    exact: bool = False,
    backend: str = DEFAULT_BACKEND,
    on_progress: OnProgress = ignore_progress,
) -> Embedder:
    """Open an encoder, as `open_model` opens decoders. Raises `ThriftyError` and its subclasses."""
    version, artifact = fetch_model(store, model, on_progress=on_progress)
    if artifact.description.family is not Family.ENCODER:
        raise EvaluationError(
            f"{version.label} is {artifact.description.family.with_article}, which has no embeddings; "
            "its reference must be one too"
        )
    return find_backend(backend).open_encoder(
        store, version, artifact, exact=exact, on_progress=on_progress
    )


def has_chat_template(store: Store, artifact: Artifact) -> bool:
    """Whether a stored model has a chat template. Raises `IntegrityError`."""
    folder = store.folder_of(artifact.id)
    if read_chat_templates(folder):
        return True
    if artifact.description.format is not Format.GGUF:
        return False
    file = GgufFile(next(folder.glob("*.gguf")))
    return bool(read_gguf_templates(file.metadata, file.path))


def digest_vocabulary(tokenizer: TextTokenizer) -> str:
    """A checksum that two tokenizers share if they have the same vocabulary."""
    vocabulary = sorted(tokenizer.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
