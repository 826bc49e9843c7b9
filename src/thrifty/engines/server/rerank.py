"""Rankings in the dialect of Jina, Cohere, vLLM and llama.cpp: documents by relevance to a query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from thrifty.engines.server.backend import Candidates, ModelFacts
from thrifty.engines.server.prompt import check_text
from thrifty.engines.server.request import check_length, parse_truncation
from thrifty.openai.errors import bad_request
from thrifty.text.tokenizer import TextTokenizer

MAX_DOCUMENTS = 2048

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class RerankRequest:
    """One request for a ranking, ready for the backend."""

    candidates: Candidates
    documents: list[str]
    """As they were sent; candidates may be cut."""
    model: str
    top_n: int
    returns_documents: bool


def parse_rerank(
    body: dict[str, Any], tokenizer: TextTokenizer, facts: ModelFacts, model: str
) -> RerankRequest:
    """What a valid body asks for. Raises a 400 for what does not fit the model."""
    query: str = body["query"]
    documents = [one if isinstance(one, str) else one["text"] for one in body["documents"]]
    if len(documents) > MAX_DOCUMENTS:
        raise bad_request(
            f"'documents' has {len(documents)} texts; at most {MAX_DOCUMENTS} may come at once.",
            "documents",
            "invalid_value",
        )
    check_text(query, tokenizer, facts, "query")
    check_length(len(tokenizer.encode(query)), facts, "query")
    keep = parse_truncation(body, facts, 0)
    if keep is None:
        for text in documents:
            check_text(text, tokenizer, facts, "documents")
    pairs = tokenizer.encode_pairs(query, documents, keep)
    for place, pair in enumerate(pairs):
        _check_pair(len(pair.ids), place, facts, keep)
    texts = [text[: pair.chars] for text, pair in zip(documents, pairs, strict=True)]
    return RerankRequest(
        Candidates(query, texts, [one.ids for one in pairs], [one.second_at for one in pairs]),
        documents,
        model=str(body.get("model", model)),
        top_n=body.get("top_n") or len(documents),
        returns_documents=bool(body.get("return_documents")),
    )


def write_ranking(request: RerankRequest, logits: Sequence[float]) -> bytes:
    """The answer: the most relevant documents first. A document's relevance is the sigmoid of the
    model's logit, from 0 to 1.
    """
    order = sorted(range(len(logits)), key=lambda index: -logits[index])
    results = []
    for index in order[: request.top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": _sigmoid(logits[index])}
        if request.returns_documents:
            result["document"] = {"text": request.documents[index]}
        results.append(result)
    tokens = sum(map(len, request.candidates.ids))
    return _encode(
        {
            "object": "list",
            "results": results,
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _check_pair(tokens: int, place: int, facts: ModelFacts, keep: int | None) -> None:
    """Raise a 400 where a query and a document do not fit, cut to `keep` tokens or whole."""
    limit = facts.context_length if keep is None else keep
    if tokens <= limit:
        return
    if keep is not None:
        raise bad_request(
            f"'query' leaves no room for a document within the {keep} tokens to which both are cut; "
            "shorten it.",
            "query",
            "context_length_exceeded",
        )
    raise bad_request(
        f"This model's maximum context length is {limit} tokens. However, 'query' and "
        f"'documents[{place}]' have {tokens} tokens together. Please shorten the document, or set "
        "'truncate_prompt_tokens' (-1 cuts documents to what fits).",
        "documents",
        "context_length_exceeded",
    )


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else 1 - 1 / (1 + math.exp(logit))
