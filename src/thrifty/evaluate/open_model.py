"""Opens the model that a user names for evaluation."""

from __future__ import annotations

import hashlib
import json

from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
from thrifty.errors import EvaluationError
from thrifty.evaluate.backends import DEFAULT_BACKEND, find_backend
from thrifty.evaluate.embedder import Embedder
from thrifty.evaluate.scorer import Scorer
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, OnProgress, ignore_progress


def is_url(model: str) -> bool:
    """Whether a model is named by where it is served."""
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
    """The decoder `model`: a stored name, a source, a folder or a file. `exact` computes in
    float32; `kv_precision` is that of the KV cache, as it is served with.

    OpenVINO reads a checkpoint (GGUF or safetensors) into a graph with 16-bit weights first. Blocks.
    Raises `ThriftyError` and its kinds.
    """
    version, artifact = fetch_model(store, model, on_progress=on_progress)
    if artifact.description.family is not Family.DECODER:
        raise EvaluationError(
            f"{version.label} is an encoder, which has no next tokens; its reference must be one too"
        )
    return find_backend(backend).open_decoder(
        store, version, artifact, exact=exact, kv_precision=kv_precision, on_progress=on_progress
    )


def is_encoder(model: str, store: Store, on_progress: OnProgress = ignore_progress) -> bool:
    """Whether a model on this machine is an encoder. Fetches it where it is not stored yet."""
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
    """The encoder `model`, as `open_model` opens decoders. Raises `ThriftyError` and its kinds."""
    version, artifact = fetch_model(store, model, on_progress=on_progress)
    if artifact.description.family is not Family.ENCODER:
        raise EvaluationError(
            f"{version.label} is a decoder, which has no embeddings; its reference must be one too"
        )
    return find_backend(backend).open_encoder(
        store, version, artifact, exact=exact, on_progress=on_progress
    )


def digest_vocabulary(tokenizer: TextTokenizer) -> str:
    """A checksum that two tokenizers share where their tokens are the same."""
    vocabulary = sorted(tokenizer.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
