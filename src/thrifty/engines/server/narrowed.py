"""Request fields that our own servers honour, whole or in part, whichever engine is behind them.

The server refuses by this table, and docs/fields.md is made from it.
"""

from __future__ import annotations

from thrifty.openai.fields import Endpoint, Field, Narrowed

DECODER_FIELDS = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "best_of", "chat_template_kwargs",
        "continue_final_message", "echo", "frequency_penalty", "ignore_eos", "logprobs",
        "max_completion_tokens", "max_tokens", "messages", "min_p", "min_tokens", "n",
        "parallel_tool_calls", "presence_penalty", "priority", "prompt", "repetition_penalty",
        "response_format", "return_token_strs", "seed", "separate_reasoning", "stop",
        "stop_token_ids", "suffix", "temperature", "tool_choice", "tools", "top_k", "top_logprobs",
        "top_p", "truncate_prompt_tokens",
    }
)  # fmt: skip
"""What servers of decoders honour: the prompt's fields in the server, the others in every engine."""
ENCODER_FIELDS = frozenset({"dimensions", "encoding_format", "truncate_prompt_tokens"})
"""What servers of encoders honour beside the input."""
RERANKER_FIELDS = frozenset({"return_documents", "top_n", "truncate_prompt_tokens"})
"""What servers of rerankers honour beside the query and the documents."""

NARROWED: Narrowed = {
    # Checked when the model is known.
    (Endpoint.COMPLETIONS, "suffix"): Field(
        "with models that have tokens for it", lambda value: True
    ),
    (Endpoint.EMBEDDINGS, "dimensions"): Field("those that the model has", lambda value: True),
}
