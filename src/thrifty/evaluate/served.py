"""A server that others run, asked in JSON."""

from __future__ import annotations

import os
from typing import Any

import requests

from thrifty.errors import EvaluationError

TIMEOUT_S = 600.0


class ServedUrl:
    """An OpenAI-compatible server's address and connection; `/v1` at its end may be there or not."""

    def __init__(self, url: str, key_env: str | None = None) -> None:
        """`key_env` names the environment variable that holds its key."""
        self.base = url.rstrip("/").removesuffix("/v1")
        self._session = requests.Session()
        key = os.environ.get(key_env) if key_env else None
        if key:
            self._session.headers["authorization"] = f"Bearer {key}"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer. Raises `EvaluationError` where there is none, or one that is no JSON."""
        try:
            reply = self._session.request(method, self.base + path, json=body, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise EvaluationError(f"{self.base} cannot be reached: {error}") from None
        if reply.status_code != 200:
            raise EvaluationError(
                f"{self.base}{path} answered {reply.status_code}: {reply.text[:300]}"
            )
        try:
            found: dict[str, Any] = reply.json()
        except ValueError:
            raise EvaluationError(f"{self.base}{path} did not answer with JSON") from None
        return found

    def close(self) -> None:
        """Close the connection."""
        self._session.close()
