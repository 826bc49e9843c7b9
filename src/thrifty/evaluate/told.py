"""What a recorded prompt was made of besides its messages."""

from __future__ import annotations

from typing import Any

from thrifty.engines.server.tools import parse_tools
from thrifty.observe.texts import parse_facts
from thrifty.openai.errors import WireError


def read_told(facts: str | None) -> dict[str, Any] | None:
    """What the model was told beside the messages; None where the prompt cannot be made again.
    Raises `ValueError` where the facts cannot be read.
    """
    found = parse_facts(facts)
    if "unlike" in found:
        return None
    try:
        plan = parse_tools(found)
    except WireError:  # redaction replaced a part of a name, or a version before took more
        return None
    told: dict[str, Any] = {"tools": plan.tools} if plan.active else {}
    if found.get("chat_template_kwargs"):
        told["chat_template_kwargs"] = found["chat_template_kwargs"]
    return told
