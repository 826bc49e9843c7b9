"""The sizes that a model's files say its embeddings may be cut to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.graphs.test_encoder import write, write_pooling
from thrifty.artifacts.embedding_sizes import read_smaller_sizes
from thrifty.artifacts.encoder_checkpoint import load_encoder
from thrifty.artifacts.write_encoder import write_encoder

BESIDE = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("config", "beside", "expected"),
    [
        ({}, None, []),
        ({"matryoshka_dimensions": [16, 8, 32, 64]}, None, [8, 16]),
        ({"is_matryoshka": True}, None, list(range(1, 32))),
        ({"is_matryoshka": True, "matryoshka_dimensions": [16]}, None, [16]),
        ({"is_matryoshka": False}, {"truncate_dim": None}, []),
        ({}, {"truncate_dim": 12}, [12]),
        ({"matryoshka_dimensions": [16]}, {"truncate_dim": 12}, [12, 16]),
        ({"matryoshka_dimensions": ["16", True, 0, -4, 8.0, [4]]}, None, []),
        ({"matryoshka_dimensions": 16, "truncate_dim": "x"}, {"truncate_dim": {}}, []),
    ],
)
def test_sizes(tmp_path: Path, config: Any, beside: Any, expected: list[int]) -> None:
    write(tmp_path, **config)
    if beside is not None:
        (tmp_path / BESIDE).write_text(json.dumps(beside))
    assert read_smaller_sizes(tmp_path, 32) == expected


def test_sizes_are_kept_until_channels_go(tmp_path: Path) -> None:
    source, same = tmp_path / "source", tmp_path / "same"
    source.mkdir()
    write(source, matryoshka_dimensions=[8, 16])
    write_pooling(source, "mean_tokens", normalize=True)
    (source / BESIDE).write_text('{"truncate_dim": 12}')
    write_encoder(load_encoder(source), source, same)
    assert read_smaller_sizes(same, 32) == [8, 12, 16]
    # What is named is another width than the weights have: as after the pruning of channels.
    other = tmp_path / "other"
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    checkpoint = load_encoder(same)
    assert checkpoint.shape.hidden_size == 32 != 48
    write_encoder(checkpoint, source, other)
    assert read_smaller_sizes(other, 32) == []
