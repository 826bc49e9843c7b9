"""The backends that run models in an evaluation: OpenVINO as in serving, or PyTorch for comparison.

A backend is an entry of `BACKENDS`; everything that depends on the backend is a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Protocol

from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.processor import find_processor_fault
from thrifty.errors import EvaluationError
from thrifty.evaluate.embedder import Embedder
from thrifty.evaluate.scorer import Scorer
from thrifty.types import Format, OnProgress

DEFAULT_BACKEND = "openvino"


class Backend(Protocol):
    """Opens stored models for evaluation."""

    @property
    def kv_precisions(self) -> tuple[str, ...]:
        """The KV cache precisions that it supports."""
        ...

    @property
    def package(self) -> str:
        """The Python package that runs the model."""
        ...

    def open_decoder(
        self,
        store: Store,
        version: NamedVersion,
        artifact: Artifact,
        *,
        exact: bool,
        kv_precision: str | None,
        on_progress: OnProgress,
    ) -> Scorer:
        """Open a decoder. Blocks. Raises `ThriftyError` and its subclasses."""
        ...

    def open_encoder(
        self,
        store: Store,
        version: NamedVersion,
        artifact: Artifact,
        *,
        exact: bool,
        on_progress: OnProgress,
    ) -> Embedder:
        """Open an encoder. Blocks. Raises `ThriftyError` and its subclasses."""
        ...


@dataclass(frozen=True)
class OpenVino:
    """Runs the same graphs as in serving; converts checkpoints to graphs with 16-bit weights."""

    kv_precisions: tuple[str, ...] = ("u8", "f16")
    package: str = "openvino"

    def open_decoder(
        self,
        store: Store,
        version: NamedVersion,
        artifact: Artifact,
        *,
        exact: bool,
        kv_precision: str | None,
        on_progress: OnProgress,
    ) -> Scorer:
        """See `Backend`."""
        version, artifact = _make_graph(store, version, artifact, on_progress)
        from thrifty.evaluate.openvino_scorer import OpenVinoScorer

        return OpenVinoScorer.load(
            store.folder_of(artifact.id), version.label, artifact.id, exact=exact,
            kv_precision=kv_precision,
        )  # fmt: skip

    def open_encoder(
        self,
        store: Store,
        version: NamedVersion,
        artifact: Artifact,
        *,
        exact: bool,
        on_progress: OnProgress,
    ) -> Embedder:
        """See `Backend`."""
        version, artifact = _make_graph(store, version, artifact, on_progress)
        from thrifty.evaluate.openvino_embedder import OpenVinoEmbedder

        return OpenVinoEmbedder.load(
            store.folder_of(artifact.id), version.label, artifact.id, exact=exact
        )


@dataclass(frozen=True)
class Torch:
    """Runs transformers models on PyTorch in float32; converts GGUF files to safetensors."""

    kv_precisions: tuple[str, ...] = ()
    package: str = "torch"

    def open_decoder(
        self,
        store: Store,
        version: NamedVersion,
        artifact: Artifact,
        *,
        exact: bool,
        kv_precision: str | None,
        on_progress: OnProgress,
    ) -> Scorer:
        """See `Backend`."""
        from thrifty.engines.plain_checkpoint import make_plain
        from thrifty.evaluate.torch_scorer import TorchScorer

        plain = make_plain(store, version, artifact, on_progress)[1]
        return TorchScorer(store.folder_of(plain.id), version.label, plain.id)

    def open_encoder(
        self,
        store: Store,
        version: NamedVersion,
        artifact: Artifact,
        *,
        exact: bool,
        on_progress: OnProgress,
    ) -> Embedder:
        """See `Backend`."""
        if artifact.description.format is not Format.SAFETENSORS:
            raise EvaluationError(
                f"{version.label} is {artifact.description.format.value}; PyTorch runs safetensors"
            )
        from thrifty.evaluate.torch_embedder import TorchEmbedder

        return TorchEmbedder(store.folder_of(artifact.id), version.label, artifact.id)


BACKENDS: dict[str, Backend] = {"openvino": OpenVino(), "torch": Torch()}


def find_backend(name: str) -> Backend:
    """The backend called `name`. Raises `EvaluationError`."""
    if name not in BACKENDS:
        raise EvaluationError(f"unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    return BACKENDS[name]


def describe_backend(name: str) -> str:
    """A backend's name and version, as measurements record them."""
    return f"{name} {package_version(find_backend(name).package)}"


def _make_graph(
    store: Store, version: NamedVersion, artifact: Artifact, on_progress: OnProgress
) -> tuple[NamedVersion, Artifact]:
    if artifact.description.format is Format.OPENVINO:
        fault = find_processor_fault(artifact, detect_machine())
        if fault:
            raise EvaluationError(f"{version.label} cannot be evaluated here: {fault}")
        return version, artifact
    from thrifty.engines.openvino.prepare import prepare_model

    return prepare_model(store, version, artifact, "none", on_progress)
