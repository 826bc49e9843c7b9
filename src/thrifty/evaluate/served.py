"""A JSON client of a server that someone else runs."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

from thrifty.errors import EvaluationError
from thrifty.openai.base_urls import complete_url, shorten_url

TIMEOUT_S = 600.0
ATTEMPTS = 4
PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses of a server that is busy or unavailable for a moment."""
REFUSED = frozenset({400, 413, 422})
"""Statuses that say that a request is at fault, and others need not be."""
LONGEST_WAIT_S = 60.0
PROBE = "The capital of France is Paris, and seven times eight is"
"""The text by which a model behind a URL is recognized."""
FINGERPRINT_DECIMALS = 3
"""Of values that are compared; batches that others share change later ones."""


def fingerprint(values: npt.ArrayLike) -> str:
    """What tells numbers from others, up to what two answers to the same request differ by."""
    rounded = np.round(np.asarray(values, np.float64), FINGERPRINT_DECIMALS) + 0.0
    return hashlib.sha256(rounded.tobytes()).hexdigest()[:16]


class RefusedRequest(EvaluationError):
    """A request that a server does not take, whoever asks and whenever."""


class ServedUrl:
    """An OpenAI-compatible server's base URL and connections."""

    def __init__(
        self,
        url: str,
        key_env: str | None = None,
        headers: Mapping[str, str] | None = None,
        on_wait: Callable[[int, float], None] = lambda status, seconds: None,
    ) -> None:
        """`key_env` names the environment variable that holds the API key, `headers` are sent with
        every request. `on_wait` is told the status for which it asks again, and in how many
        seconds.

        Raises `EvaluationError` if that variable is empty.
        """
        self.base = shorten_url(url)
        self._on_wait = on_wait
        self._session = requests.Session()
        self._session.headers.update(headers or {})
        if key_env:
            key = os.environ.get(key_env)
            if not key:
                raise EvaluationError(f"the environment variable {key_env} contains no key")
            self._session.headers["authorization"] = f"Bearer {key}"

    def list_models(self) -> list[dict[str, Any]]:
        """The server's descriptions of its models, at least one. Raises `EvaluationError`."""
        served: list[dict[str, Any]] = self.ask("GET", "/v1/models")["data"]
        if not served:
            raise EvaluationError(f"{self.base} serves no model")
        return served

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        until_s: float = math.inf,
    ) -> dict[str, Any]:
        """The JSON answer to a request; retries while the server is busy or unavailable.

        Raises `EvaluationError` if there is no answer, or none in JSON; of these `RefusedRequest`
        where the server finds fault with the request itself. Raises `TimeoutError` if
        there is none when `time.monotonic` is `until_s`; the connection is closed then, so that the
        server can stop its work.
        """
        url = complete_url(self.base) + path.removeprefix("/v1")
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            try:
                reply = self._session.request(
                    method, url, json=body, timeout=min(TIMEOUT_S, left_s)
                )
            except requests.RequestException as error:
                if left_s < TIMEOUT_S and isinstance(error, requests.Timeout):
                    raise TimeoutError from None
                if last:
                    raise EvaluationError(f"{self.base} cannot be reached: {error}") from None
                time.sleep(_find_wait(attempt, None, until_s))
                continue
            if last or reply.status_code not in PASSING:
                break
            wait_s = _find_wait(attempt, reply.headers.get("retry-after"), until_s)
            self._on_wait(reply.status_code, wait_s)
            time.sleep(wait_s)
        if reply.status_code != 200:
            fault = RefusedRequest if reply.status_code in REFUSED else EvaluationError
            raise fault(f"{url} answered {reply.status_code}: {reply.text[:300]}")
        try:
            found: dict[str, Any] = reply.json()
        except ValueError:
            raise EvaluationError(f"{url} did not answer with JSON") from None
        return found

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _find_wait(attempt: int, retry_after: str | None, until_s: float) -> float:
    """In how many seconds to ask again."""
    asked = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    left_s = max(0.0, until_s - time.monotonic())
    return min(LONGEST_WAIT_S, max(asked, 0.5 * 2.0**attempt), left_s)
