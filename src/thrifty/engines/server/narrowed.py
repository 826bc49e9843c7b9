"""Request fields that our own servers honour in part, whichever engine is behind them.

The server refuses by this table, and docs/fields.md is made from it.
"""

from __future__ import annotations

from thrifty.openai.fields import Endpoint, Field, Narrowed

NARROWED: Narrowed = {
    # Checked when the model is known.
    (Endpoint.COMPLETIONS, "suffix"): Field(
        "with models that have tokens for it", lambda value: True
    ),
    (Endpoint.EMBEDDINGS, "dimensions"): Field("those that the model has", lambda value: True),
}
