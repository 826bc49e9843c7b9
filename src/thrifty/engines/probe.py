"""Requests to a model server: is it ready, and how busy is it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from thrifty.engines.base import EngineLoad, Served
from thrifty.http.client import HttpClient, TransportError
from thrifty.openai.errors import read_message
from thrifty.types import Family

LOAD_PATH = "/load"
"""Where our own servers report their load."""
PARK_PATH = "/park"
"""Where they are told that nobody asks."""
PARK_TIMEOUT_S = 60.0
"""Writing memory to a swap device takes a while."""
HEALTH_TIMEOUT_S = 5.0
GENERATION_TIMEOUT_S = 120.0
_JSON = b"content-type: application/json\r\n"


async def probe_generation(
    url: str, served: Served, *, deep: bool, key: str | None = None, health_path: str = "/health"
) -> str | None:
    """Why the server at `url` is not ready; None when it is.

    `deep` asks for one token (or one embedding, or one document's relevance): an open port and a loaded model are not yet an
    engine that works.
    """
    client = HttpClient()
    try:
        status, _ = await client.fetch(f"{url}{health_path}", timeout_s=HEALTH_TIMEOUT_S)
        if status != 200:
            return f"{health_path} answers {status}"
        if not deep:
            return None
        if served.family == Family.ENCODER:
            path = "/v1/embeddings"
            body: dict[str, Any] = {"model": served.name, "input": "ready?"}
        elif served.family == Family.RERANKER:
            path = "/v1/rerank"
            body = {"model": served.name, "query": "ready?", "documents": ["yes"]}
        else:
            path = "/v1/completions"
            body = {"model": served.name, "prompt": "ready?", "max_tokens": 1, "temperature": 0}
        headers = _JSON if key is None else _JSON + f"authorization: Bearer {key}\r\n".encode()
        status, answer = await client.fetch(
            f"{url}{path}",
            method="POST",
            headers=headers,
            body=msgspec.json.encode(body),
            timeout_s=GENERATION_TIMEOUT_S,
        )
        if status != 200:
            return f"a first generation failed with {status}: {read_message(answer)}"
    except (TransportError, OSError, asyncio.IncompleteReadError) as error:
        return str(error)
    finally:
        client.close()
    return None


async def park_server(url: str) -> None:
    """Have our own server give back memory. Raises `TransportError`."""
    client = HttpClient()
    try:
        await client.fetch(f"{url}{PARK_PATH}", method="POST", timeout_s=PARK_TIMEOUT_S)
    finally:
        client.close()


async def read_server_load(url: str, key: str | None = None) -> EngineLoad:
    """The load that our own server reports; `key` is for one beyond loopback. Raises
    `TransportError`, and `ValueError` where it does not say.
    """
    headers = b"" if key is None else f"authorization: Bearer {key}\r\n".encode()
    client = HttpClient()
    try:
        status, body = await client.fetch(
            f"{url}{LOAD_PATH}", headers=headers, timeout_s=HEALTH_TIMEOUT_S
        )
    finally:
        client.close()
    if status != 200:
        raise ValueError(f"{url}{LOAD_PATH} answers {status}")
    data: dict[str, Any] = msgspec.json.decode(body)
    return EngineLoad(
        int(data.get("running", 0)),
        int(data.get("waiting", 0)),
        float(data.get("kv_usage", 0.0)),
        data.get("facts") or {},
    )
