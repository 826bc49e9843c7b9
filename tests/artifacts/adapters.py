"""Adapters for tests: random changes of a stored model's matrices."""

from __future__ import annotations

import numpy as np

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import LAYER_MATRICES, load_decoder
from thrifty.artifacts.lora import Lora, write_lora
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.engines.plain_checkpoint import make_plain


def make_lora(
    store: Store, base: Artifact, *, rank: int = 4, seed: int = 0, size: float = 0.1
) -> Lora:
    """Changes of all matrices of the layers of `base`; those of another seed are others."""
    generator = np.random.default_rng(seed)
    checkpoint = load_decoder(store.folder_of(base.id))
    matrices = {}
    for layer in range(checkpoint.shape.layers):
        for matrix in LAYER_MATRICES:
            name = f"model.layers.{layer}.{matrix}"
            rows, columns = checkpoint.tensors.read_tensor(f"{name}.weight").shape
            down = generator.standard_normal((rank, columns)).astype(np.float32)
            up = (size * generator.standard_normal((rows, rank))).astype(np.float32)
            matrices[name] = down, up
    return Lora(rank, 2.0, matrices)


def put_adapter(
    store: Store, base: tuple[NamedVersion, Artifact], lora: Lora, name: str = "tuned"
) -> tuple[NamedVersion, Artifact]:
    """Add an adapter as trainings do."""
    version, artifact = base
    parent, plain = Parent(artifact.id, version.label), make_plain(store, *base)[1]
    with store.stage(name) as stage:
        folder = stage / "model"
        write_lora(folder, lora, parent, plain.description)
        if (store.folder_of(plain.id) / "tokenizer.json").exists():
            write_tokenizer(store.folder_of(plain.id), folder, plain)
        return store.add(folder, name, Lineage(parents=(parent,)))
