"""Request fields that our own servers honour in part, whichever engine is behind them.

The server refuses by this table, and docs/fields.md is made from it.
"""

from __future__ import annotations

from typing import Any

from thrifty.openai.fields import Endpoint, Field, Narrowed


def _is_zero(value: Any) -> bool:
    return bool(value == 0)


NARROWED: Narrowed = {
    (Endpoint.CHAT, "top_logprobs"): Field("0: only the chosen token's is known", _is_zero),
    (Endpoint.COMPLETIONS, "logprobs"): Field("0: only the chosen token's is known", _is_zero),
    # Checked when the model is known.
    (Endpoint.EMBEDDINGS, "dimensions"): Field("the model's own number", lambda value: True),
}
