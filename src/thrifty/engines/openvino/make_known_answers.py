"""Known answers of a prepared model, computed in arithmetic that is right on every processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov

from thrifty.engines.known_answers import (
    MOST_TOKENS,
    TEXTS,
    TOP,
    KnownAnswers,
    KnownEmbedding,
    KnownLogit,
    KnownToken,
    list_known_pairs,
    write_known_answers,
)
from thrifty.graphs.adapted import read_graph
from thrifty.graphs.arithmetic import REFERENCE_PROPERTIES
from thrifty.graphs.decoder import make_inputs
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family

DIGITS = 3
"""Decimal places that are stored: far fewer than the tolerance needs, and no rounding noise."""


def make_known_answers(folder: Path, family: Family, context_length: int) -> KnownAnswers:
    """Answer the prompts with the graph in `folder`, and write the answers beside it."""
    tokenizer = TextTokenizer.load(folder)
    most = min(MOST_TOKENS, max(1, context_length // 2))
    prompts = [tokenizer.encode(text)[:most] for text in TEXTS]
    model = read_graph(folder)
    compiled = ov.Core().compile_model(model, "CPU", REFERENCE_PROPERTIES)
    request = compiled.create_infer_request()
    if family is Family.ENCODER:
        known = KnownAnswers(embeddings=[_embed(request, prompt) for prompt in prompts])
    elif family is Family.RERANKER:
        known = KnownAnswers(
            logits=[_rank(request, *pair) for pair in list_known_pairs(tokenizer, 2 * most)]
        )
    else:
        known = KnownAnswers(tokens=[find_next(request, prompt) for prompt in prompts])
    write_known_answers(folder, known)
    return known


def find_next(request: ov.InferRequest, prompt: list[int]) -> KnownToken:
    """What follows `prompt` most likely, by a decoder's graph."""
    request.reset_state()
    request.infer(make_inputs(np.array(prompt, np.int64)))
    logits = request.get_tensor("logits").data[0, -1].astype(np.float64)
    logprobs = logits - logits.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    top = np.argsort(-logprobs, kind="stable")[:TOP]
    return KnownToken(prompt, [int(one) for one in top], _round(logprobs[top]))


def _embed(request: ov.InferRequest, prompt: list[int]) -> KnownEmbedding:
    ids = np.array([prompt], np.int64)
    found = request.infer({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return KnownEmbedding(prompt, _round(found["embeddings"][0]))


def _rank(request: ov.InferRequest, pair: list[int], document_at: int) -> KnownLogit:
    ids = np.array([pair], np.int64)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if len(request.model_inputs) > len(given):
        given["token_type_ids"] = (np.arange(len(pair)) >= document_at)[None].astype(np.int64)
    (logit,) = _round(request.infer(given)[0][0])
    return KnownLogit(pair, document_at, logit)


def _round(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
