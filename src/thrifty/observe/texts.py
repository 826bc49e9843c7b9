"""What is kept of prompts and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thrifty.openai.fields import Endpoint


@dataclass(frozen=True)
class RawTexts:
    """A request and its answer as they went through the gateway."""

    endpoint: Endpoint
    body: dict[str, Any]
    answer: bytes
    streamed: bool = False
