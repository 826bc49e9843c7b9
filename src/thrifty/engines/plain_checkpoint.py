"""Convert any checkpoint to one that PyTorch loads: safetensors and transformers' settings."""

from __future__ import annotations

import shutil

from thrifty.artifacts import Artifact, Lineage, NamedVersion, Parent, Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.tokenizer_files import write_tokenizer
from thrifty.artifacts.write_checkpoint import write_decoder
from thrifty.errors import FormatRefused
from thrifty.types import Family, Format, OnProgress, ignore_progress

RECIPE = {"step": "checkpoint", "version": 1}


def make_plain(
    store: Store,
    version: NamedVersion,
    artifact: Artifact,
    on_progress: OnProgress = ignore_progress,
) -> tuple[NamedVersion, Artifact]:
    """The model as safetensors: itself, or a GGUF's weights in 16 bits, converted once. Blocks.

    Raises `FormatRefused` for a model that is already prepared for an engine.
    """
    description = artifact.description
    if description.format is Format.SAFETENSORS:
        return version, artifact
    if description.format is Format.OPENVINO or description.family is not Family.DECODER:
        raise FormatRefused(
            f"{version.label} is {description.format.value}, which PyTorch does not load; use the "
            "checkpoint that it was made from"
        )
    made = store.find_made(artifact.id, RECIPE)
    if made is not None:
        return made
    store.require_space(2 * description.parameters + 50_000_000, f"reading {version.label}")
    source = store.folder_of(artifact.id)
    with store.stage(f"checkpoint {artifact.id}") as folder:
        target = folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        write_decoder(load_decoder(source), target)
        write_tokenizer(source, target, artifact)
        lineage = Lineage(parents=(Parent(artifact.id, version.label),), recipe=RECIPE)
        return store.add(target, f"{version.name}-checkpoint", lineage, on_progress=on_progress)
