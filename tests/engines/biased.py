"""A model that writes at random, with a liking for what ends strings, objects and answers.

It has a real tokenizer and runs on the real engine, but computes next to nothing: so many bound
answers can be made in little time, and none follows its schema by good sense.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.parts import running_server
from thrifty.artifacts.chat_templates import read_chat_templates
from thrifty.artifacts.checkpoint import DecoderCheckpoint, DecoderShape
from thrifty.engines.openvino.adapter import HONOURS
from thrifty.engines.openvino.backend import OpenVinoBackend
from thrifty.engines.openvino.options import OpenVinoOptions
from thrifty.engines.openvino.worker_settings import Settings
from thrifty.engines.server.app import ModelServer
from thrifty.graphs.decoder import build_decoder
from thrifty.text.tokenizer import TextTokenizer

CONTEXT = 8192
END = "<|end|>"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
_WIDTH = 32


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with tokens of several characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class _Weights:
    """Every token is followed by the same probabilities."""

    def __init__(self, likings: npt.NDArray[np.float32]) -> None:
        self._likings = likings

    def __contains__(self, name: str) -> bool:
        return name.endswith(
            ("_proj.weight", "layernorm.weight", "embed_tokens.weight", "lm_head.weight")
        )

    def read_tensor(self, name: str) -> npt.NDArray[np.float32]:
        if "norm" in name:
            return np.ones(_WIDTH, dtype=np.float32)
        table = np.zeros((len(self._likings), _WIDTH), dtype=np.float32)
        if "lm_head" in name:
            # The norm makes the square root of the width of the one value that is not zero.
            table[:, 0] = self._likings / np.sqrt(_WIDTH)
            return table
        if "embed_tokens" in name:
            table[:, 0] = 1
            return table
        return np.zeros((_WIDTH, _WIDTH), dtype=np.float32)


def find_likings(tokenizer: TextTokenizer, end: int) -> npt.NDArray[np.float32]:
    """How each token is liked, as a logit."""
    likings = np.zeros(tokenizer.vocabulary_size, dtype=np.float32)
    for token in range(tokenizer.vocabulary_size):
        text = tokenizer.token_bytes(token)
        if text in (b'"', b"}", b"]"):
            likings[token] = 8
        elif text.lstrip(b" ")[:1] in (b'"', b"}", b"]"):
            likings[token] = 5
        elif text.isdigit():
            likings[token] = 2
    likings[end] = 8
    return likings


def write_biased_model(prepared: Path, target: Path, end: int) -> None:
    """Write a prepared model's folder with another graph in it."""
    shutil.copytree(prepared, target, ignore=shutil.ignore_patterns("openvino_model.*", "known_*"))
    (target / "grammar").mkdir(exist_ok=True)
    shutil.copytree(prepared / "grammar", target / "grammar", dirs_exist_ok=True)
    tokenizer = TextTokenizer.load(target)
    if not read_chat_templates(target):
        (target / "chat_template.jinja").write_text(TEMPLATE)
    shape = DecoderShape(
        architecture="none", layers=1, hidden_size=_WIDTH, heads=1, kv_heads=1, head_dim=_WIDTH,
        vocab_size=tokenizer.vocabulary_size, context_length=CONTEXT, norm_epsilon=1e-5,
        rope_theta=10_000.0,
    )  # fmt: skip
    weights = _Weights(find_likings(tokenizer, end))
    model = build_decoder(DecoderCheckpoint(shape, weights), "none")
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    (target / "config.json").write_text(json.dumps({"eos_token_id": end}))


@contextlib.asynccontextmanager
async def serving(folder: Path, end: int, **options: Any) -> AsyncIterator[str]:
    """The model in `folder`, served as a replica serves it; gives its URL."""
    values = OpenVinoOptions(**{"activation_group": 0, **options}).model_dump()
    settings = Settings(str(folder), "decoder", 2, values, 4096, (end,))
    backend = OpenVinoBackend(settings, CONTEXT)
    server = ModelServer(
        "m", backend, TextTokenizer.load(folder), engine="openvino", honours=HONOURS
    )
    await server.start()
    try:
        async with running_server(server.handle) as (url, _):
            yield url
    finally:
        await backend.stop()
