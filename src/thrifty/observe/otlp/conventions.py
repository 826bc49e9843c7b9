"""OpenTelemetry's names for what Thrifty knows. What changes there changes here, and nowhere else.

GenAI conventions (`semantic-conventions-genai` 0.1) are in development. The names below are in both
generations, but for `gen_ai.usage.cache_read.input_tokens`, which is the new one's. What they have
no name for begins with `thrifty.`. Texts, end users and tags are never exported.
"""

from __future__ import annotations

from thrifty.openai.fields import Endpoint

OWN = "thrifty."
"""How names begin that the conventions have no name for."""
PROVIDER = "gen_ai.provider.name", "thrifty"
OPERATION = "gen_ai.operation.name"
OPERATIONS = {
    Endpoint.CHAT.value: "chat",
    Endpoint.COMPLETIONS.value: "text_completion",
    Endpoint.EMBEDDINGS.value: "embeddings",
    Endpoint.RERANK.value: "rerank",
    Endpoint.TOKENIZE.value: "tokenize",
}
"""By path."""

SERVICE_NAME, SERVICE_VERSION = "service.name", "service.version"
SERVICE_INSTANCE = "service.instance.id"

METHOD, ROUTE, STATUS, ERROR = (
    "http.request.method", "http.route", "http.response.status_code", "error.type",
)  # fmt: skip

REQUEST = {
    "conversation_id": "gen_ai.conversation.id",
    "deployment": "gen_ai.request.model",
    "version": "gen_ai.response.model",
    "replica": f"{OWN}replica",
    "tenant": f"{OWN}tenant",
    "client_request_id": f"{OWN}client_request_id",
    "origin": f"{OWN}origin",
    "rerouted": f"{OWN}rerouted",
    "stream": "gen_ai.request.stream",
    "cache": f"{OWN}cache.result",
    "attempts": f"{OWN}attempts",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
}
"""Attributes of a request, by the column of the request log."""
RESPONSE_ID = "gen_ai.response.id"
CACHE_TIER = f"{OWN}cache.tier"
FIRST_TOKEN = "first token"  # noqa: S105
"""The event at which an answer begins."""

METRICS = {
    "thrifty_e2e_seconds": "gen_ai.server.request.duration",
    "thrifty_ttft_seconds": "gen_ai.server.time_to_first_token",
    "thrifty_tpot_seconds": "gen_ai.server.time_per_output_token",
}
"""Metrics that have a name there; others are `thrifty.` and their own."""
LABELS = {
    "deployment": "gen_ai.request.model",
    "version": "gen_ai.response.model",
    "endpoint": ROUTE,
    "status": STATUS,
}
"""Labels that have a name there; others are `thrifty.` and their own."""
_UNITS = {"_seconds": "s", "_bytes": "By"}


def name_metric(name: str) -> str:
    """The name of a metric, by that in Prometheus."""
    return METRICS.get(name, f"{OWN}{name.removeprefix('thrifty_')}")


def name_label(label: str) -> str:
    """The name of a label."""
    return LABELS.get(label, f"{OWN}{label}")


def find_unit(name: str) -> str:
    """The unit of a metric, by its name in Prometheus."""
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "1")
