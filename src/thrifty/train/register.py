"""A trained model, put into the store."""

from __future__ import annotations

import json
import shutil
from typing import Any

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import DecoderCheckpoint, load_decoder
from thrifty.artifacts.encoder_checkpoint import EncoderCheckpoint, load_encoder
from thrifty.artifacts.lora import SCALE, Lora, join, read_lora, write_lora
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.types import Family, OnProgress

MOST_RANK = 128
"""An adapter that holds the changes of an earlier one has their ranks together. Beyond this it
would cost more to serve than it saves, and the merged model becomes the base.
"""


def register_adapter(
    store: Store,
    source: tuple[NamedVersion, Artifact],
    plain: tuple[NamedVersion, Artifact],
    weights: SafetensorsFiles,
    out: str,
    recipe: dict[str, Any],
    report: dict[str, Any],
) -> tuple[NamedVersion, Artifact]:
    """Add an adapter with its trained matrices to the store, as `out`. `source` is what was
    trained: of an adapter, the new one has the same base and holds the changes of both. `plain` is
    the base as a checkpoint. Raises the store's errors.
    """
    version, artifact = source
    lora = _read_lora(weights)
    base = Parent(artifact.id, version.label)
    if artifact.description.base is not None:
        earlier = read_lora(store.folder_of(artifact.id))
        if earlier.rank + lora.rank <= MOST_RANK:
            lora, base = join(earlier, lora), artifact.description.base
        else:
            merged = make_plain(store, *source)
            base = Parent(merged[1].id, merged[0].label)
    store.require_space(100_000_000, f"training {out}")
    with store.stage(
        f"{recipe['step']} {artifact.id} {json.dumps(recipe, sort_keys=True)}"
    ) as stage:
        target = stage / "model"
        shutil.rmtree(target, ignore_errors=True)
        write_lora(target, lora, base, plain[1].description)
        write_tokenizer(store.folder_of(plain[1].id), target, plain[1])
        parent = Parent(artifact.id, version.label)
        return store.add(target, out, Lineage(parents=(parent,), recipe=recipe, figures=report))


def _read_lora(weights: SafetensorsFiles) -> Lora:
    """The adapter whose matrices the training wrote (`lora.extract`)."""
    names = [name.removesuffix(".down") for name in weights.names if name.endswith(".down")]
    matrices = {
        name: (weights.read_tensor(f"{name}.down"), weights.read_tensor(f"{name}.up"))
        for name in names
    }
    return Lora(len(next(iter(matrices.values()))[0]), SCALE, matrices)


def register_trained(
    store: Store,
    plain: tuple[NamedVersion, Artifact],
    weights: SafetensorsFiles,
    out: str,
    recipe: dict[str, Any],
    report: dict[str, Any],
    on_progress: OnProgress,
) -> tuple[NamedVersion, Artifact]:
    """Add a model with its trained weights to the store, as `out`. `plain` is what it was made from
    (`make_plain`), whose tokenizer and shape it has. Raises the store's errors.
    """
    version, artifact = plain
    source = store.folder_of(artifact.id)
    store.require_space(2 * artifact.description.parameters + 50_000_000, f"training {out}")
    with store.stage(
        f"{recipe['step']} {artifact.id} {json.dumps(recipe, sort_keys=True)}"
    ) as stage:
        target = stage / "model"
        shutil.rmtree(target, ignore_errors=True)
        if artifact.description.family is Family.ENCODER:
            write_encoder(EncoderCheckpoint(load_encoder(source).shape, weights), source, target)
        else:
            write_decoder(DecoderCheckpoint(load_decoder(source).shape, weights), target)
            write_tokenizer(source, target, artifact)
        parent = Parent(artifact.id, version.label)
        lineage = Lineage(parents=(parent,), recipe=recipe, figures=report)
        return store.add(target, out, lineage, on_progress=on_progress)
