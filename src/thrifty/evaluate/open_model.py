"""From what a user names to something that can be evaluated."""

from __future__ import annotations

import hashlib
import json

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.sources import fetch_model
from thrifty.errors import EvaluationError
from thrifty.evaluate.embedder import Embedder
from thrifty.evaluate.scorer import Scorer
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family, Format, OnProgress, ignore_progress


def is_url(model: str) -> bool:
    """Whether a model is named by where it is served."""
    return model.startswith(("http://", "https://"))


def open_model(
    model: str,
    store: Store,
    *,
    exact: bool = False,
    backend: str = "openvino",
    kv_precision: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Scorer:
    """The model `model`: a stored name, a source, a folder or a file. `exact` computes in float32,
    `kv_precision` over a KV cache as it is served with.

    A checkpoint (GGUF or safetensors) is read into a graph with 16-bit weights first, unless
    `backend` is `torch`. Blocks. Raises `ThriftyError` and its kinds.
    """
    version, artifact = fetch_model(store, model, on_progress=on_progress)
    if artifact.description.family is not Family.DECODER:
        raise EvaluationError(
            f"{version.label} is an encoder, which has no next tokens; its reference must be one too"
        )
    if backend == "torch":
        return _open_torch(store, version, artifact, on_progress)
    version, artifact = _make_graph(store, version, artifact, on_progress)
    from thrifty.evaluate.openvino_scorer import OpenVinoScorer

    return OpenVinoScorer.load(
        store.folder_of(artifact.id), version.label, artifact.id, exact=exact,
        kv_precision=kv_precision,
    )  # fmt: skip


def is_encoder(model: str, store: Store, on_progress: OnProgress = ignore_progress) -> bool:
    """Whether a model on this machine is an encoder. Fetches it where it is not stored yet."""
    _, artifact = fetch_model(store, model, on_progress=on_progress)
    return artifact.description.family is Family.ENCODER


def open_encoder(
    model: str,
    store: Store,
    *,
    exact: bool = False,
    backend: str = "openvino",
    on_progress: OnProgress = ignore_progress,
) -> Embedder:
    """The encoder `model`, as `open_model` opens decoders. Raises `ThriftyError` and its kinds."""
    version, artifact = fetch_model(store, model, on_progress=on_progress)
    if artifact.description.family is not Family.ENCODER:
        raise EvaluationError(
            f"{version.label} is a decoder, which has no embeddings; its reference must be one too"
        )
    if backend == "torch":
        if artifact.description.format is not Format.SAFETENSORS:
            raise EvaluationError(
                f"{version.label} is {artifact.description.format.value}; PyTorch runs safetensors"
            )
        from thrifty.evaluate.torch_embedder import TorchEmbedder

        return TorchEmbedder(store.folder_of(artifact.id), version.label, artifact.id)
    version, artifact = _make_graph(store, version, artifact, on_progress)
    from thrifty.evaluate.openvino_embedder import OpenVinoEmbedder

    return OpenVinoEmbedder.load(
        store.folder_of(artifact.id), version.label, artifact.id, exact=exact
    )


def _open_torch(
    store: Store, version: NamedVersion, artifact: Artifact, on_progress: OnProgress
) -> Scorer:
    from thrifty.evaluate.plain_checkpoint import make_plain
    from thrifty.evaluate.torch_scorer import TorchScorer

    plain = make_plain(store, version, artifact, on_progress)[1]
    return TorchScorer(store.folder_of(plain.id), version.label, plain.id)


def _make_graph(
    store: Store, version: NamedVersion, artifact: Artifact, on_progress: OnProgress
) -> tuple[NamedVersion, Artifact]:
    if artifact.description.format is Format.OPENVINO:
        return version, artifact
    from thrifty.engines.openvino.prepare import prepare_model

    return prepare_model(store, version, artifact, "none", on_progress)


def digest_vocabulary(tokenizer: TextTokenizer) -> str:
    """A checksum that two tokenizers share where their tokens are the same."""
    vocabulary = sorted(tokenizer.tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
