"""Has an encoder of the service embed some questions and answers, by which drift of meaning is told."""

from __future__ import annotations

import logging
import time

import numpy as np

from thrifty.db import Database
from thrifty.db.desired_state import DesiredDeployment
from thrifty.db.fleet import read_fleet
from thrifty.db.ready_replicas import find_ready_replica
from thrifty.db.vectors import Unembedded, read_unembedded, save_vectors
from thrifty.errors import EvaluationError
from thrifty.evaluate.served import ServedUrl
from thrifty.observe.texts import parse_prompt, show_answer

log = logging.getLogger(__name__)

BATCH = 16
MAX_CHARS = 2000
"""Of each text: encoders read a few hundred tokens."""
TIMEOUT_S = 60.0
IDLE_S, RETRY_S = 5.0, 60.0


class Embedding:
    """Embeds what waits. Used by one thread."""

    def __init__(self) -> None:
        self._due_s: dict[str, float] = {}
        self._faults: dict[str, str] = {}

    def embed_next(self, database: Database, deployment: DesiredDeployment) -> bool:
        """Embed some answers of a deployment, if any wait and its encoder is ready; whether it did.
        Raises `DatabaseError`.
        """
        name, encoder = deployment.name, deployment.checks.encoder
        if encoder is None or time.monotonic() < self._due_s.get(name, 0.0):
            return False
        waiting = read_unembedded(database, name, BATCH)
        if not waiting:
            self._due_s[name] = time.monotonic() + IDLE_S
            return False
        try:
            _embed(database, encoder, waiting)
        except (EvaluationError, TimeoutError) as error:
            if self._faults.get(name) != str(error):
                log.warning("%s: answers are not embedded: %s", name, error or "no answer in time")
            self._faults[name] = str(error)
            self._due_s[name] = time.monotonic() + RETRY_S
            return False
        self._faults.pop(name, None)
        return True


def _embed(database: Database, encoder: str, waiting: list[Unembedded]) -> None:
    texts = [text for one in waiting for text in _read_texts(one)]
    served, model = _open(database, encoder)
    try:
        reply = served.ask(
            "POST", "/v1/embeddings",
            {"model": model, "input": texts, "encoding_format": "float"},
            time.monotonic() + TIMEOUT_S,
        )  # fmt: skip
        data = sorted(reply["data"], key=lambda one: one["index"])
        vectors = np.array([one["embedding"] for one in data], np.float64)
    except (KeyError, TypeError, ValueError):
        raise EvaluationError(f"{encoder} did not answer with embeddings") from None
    finally:
        served.close()
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise EvaluationError(f"{encoder} did not answer with an embedding for each text")
    for place, one in enumerate(waiting):
        save_vectors(database, one.id, vectors[2 * place], vectors[2 * place + 1])


def _read_texts(one: Unembedded) -> tuple[str, str]:
    """The last question and the answer; encoders take no empty texts."""
    try:
        asked = [m.get("content") for m in parse_prompt(one.prompt) if m.get("role") == "user"]
    except ValueError:
        asked = [one.prompt]
    last = str(asked[-1] or "") if asked else ""
    return last[-MAX_CHARS:].strip() or "-", show_answer(one.answer)[:MAX_CHARS].strip() or "-"


def _open(database: Database, encoder: str) -> tuple[ServedUrl, str]:
    """A ready replica of the encoder, and what it calls its model."""
    found = find_ready_replica(read_fleet(database), encoder)
    if found is None:
        raise EvaluationError(f"the deployment {encoder!r} has no ready replica to embed with")
    return ServedUrl(found.url, found.key_env, {"cache-control": "no-store"}), found.model
