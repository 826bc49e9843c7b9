"""A trained model, put into the store."""

from __future__ import annotations

import json
import shutil
from typing import Any

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import (
    DecoderCheckpoint,
    EncoderCheckpoint,
    load_decoder,
    load_encoder,
)
from thrifty.artifacts.safetensors_file import SafetensorsFiles
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.artifacts.write_encoder import write_encoder
from thrifty.types import Family, OnProgress


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
