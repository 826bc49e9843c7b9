"""The API page: the OpenAPI document as HTML, without scripts and without a network."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment

_STYLE = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
_TEMPLATE = Environment(autoescape=True).from_string(
    files(__package__).joinpath("page.html").read_text(encoding="utf-8")
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
METHODS = ("get", "put", "post", "patch", "delete")
MAX_DEPTH = 8


def render_page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    operations = [
        _describe(document, method, path, item[method])
        for path, item in document["paths"].items()
        for method in METHODS
        if method in item
    ]
    return _TEMPLATE.render(info=document["info"], operations=operations, style=_STYLE)


def _describe(
    document: dict[str, Any], method: str, path: str, operation: dict[str, Any]
) -> dict[str, Any]:
    answers = operation["responses"]
    status = next(code for code in answers if code.startswith("2"))
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    answer = answers[status].get("content", {}).get("application/json")
    example = _show(document, body["schema"]) if body else ""
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "summary": operation["summary"],
        "description": operation["description"],
        "body": example,
        "status": status,
        "answer": _show(document, answer["schema"]) if answer else "",
    }


def _show(document: dict[str, Any], schema: dict[str, Any]) -> str:
    return json.dumps(outline(document, schema), indent=2, ensure_ascii=False)


def outline(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> Any:
    """What a value of this schema looks like: types in the place of values."""
    if depth > MAX_DEPTH:
        return "..."
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return outline(document, document["components"]["schemas"][name], depth + 1)
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        shown = [outline(document, option, depth + 1) for option in schema["anyOf"]]
        plain = [value for value in shown if isinstance(value, str)]
        return " | ".join(plain) if len(plain) == len(shown) else shown[0]
    kind = schema.get("type", "any")
    if kind == "array":
        return [outline(document, schema.get("items", {}), depth + 1)]
    if kind == "object" and "properties" in schema:
        return {
            name: outline(document, below, depth + 1)
            for name, below in schema["properties"].items()
        }
    below = schema.get("additionalProperties")
    if kind == "object" and isinstance(below, dict):
        return {"...": outline(document, below, depth + 1)}
    return {} if kind == "object" else kind
