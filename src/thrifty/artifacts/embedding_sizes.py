"""The sizes that a model's embeddings may be cut to, as its own files say.

A model trained so that the beginnings of its embeddings are embeddings too (Kusupati et al. 2022,
2205.13147) says so in `config.json`, with `matryoshka_dimensions` or `is_matryoshka`; one that was
saved with sentence-transformers for a smaller size, in that library's own settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thrifty.artifacts.inspect import read_json

SIZES, ANY_SIZE, CUT_TO = "matryoshka_dimensions", "is_matryoshka", "truncate_dim"
SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"


def read_smaller_sizes(folder: Path, size: int) -> list[int]:
    """The numbers below `size` to which the embeddings of the model in `folder` may be cut."""
    config = read_json(folder / "config.json")
    path = folder / SENTENCE_TRANSFORMERS
    beside = read_json(path) if path.exists() else {}
    if config.get(ANY_SIZE) is True and not config.get(SIZES):
        return list(range(1, size))
    given: list[Any] = []
    for settings in (config, beside):
        listed = settings.get(SIZES)
        given += listed if isinstance(listed, list) else []
        given.append(settings.get(CUT_TO))
    return sorted({one for one in given if type(one) is int and 0 < one < size})
