"""A turn of the assistant as tokens: the prompt that asks for it, and what the model generates.

The prompt is the one that a server builds from the same messages, token for token, because both
come from `build_prompt`. What is learned from a turn is thus what is asked for later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.engines.server.prompt import Prompt, build_prompt
from thrifty.engines.server.tools import ToolPlan
from thrifty.openai.errors import WireError
from thrifty.text.control_tokens import make_mark
from thrifty.text.tokenizer import TextTokenizer

_REASONING = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class Turn:
    """One turn of the assistant."""

    prompt: list[int]
    """What a server gives the model."""
    answer: list[int]
    """What the model generates then, with the token that ends its turn, if there is one."""
    ended: bool
    """Whether the last token of the answer ends the turn."""


def encode_turn(
    messages: Sequence[Any],
    answer: Mapping[str, Any],
    tokenizer: TextTokenizer,
    plan: ToolPlan,
    extra: Mapping[str, Any] | None = None,
) -> Turn | None:
    """The turn that `answer` is, after `messages`. `extra` are `chat_template_kwargs`.

    None for an answer with calls that the template writes in another form than it asks for. Raises
    a 400 for messages that a server does not take.
    """
    settings = {"chat_template_kwargs": extra} if extra else {}
    prompt = build_prompt({"messages": list(messages), **settings}, tokenizer, plan)
    body = {"messages": [*messages, dict(answer)], "add_generation_prompt": False, **settings}
    try:
        whole = build_prompt(body, tokenizer, plan).ids
    except WireError:
        whole = []
    ends = tokenizer.find_turn_ends()
    head = prompt.ids
    if whole[: len(head)] == head and len(whole) > len(head):
        tail = whole[len(head) :]
        end = next((at for at, token in enumerate(tail) if token in ends), None)
        if end is not None:
            return Turn(head, tail[: end + 1], ended=True)
    elif answer.get("tool_calls"):
        return None
    else:
        # The template writes earlier answers in another form than the one that it asks for.
        tail = _encode_text(prompt, answer, tokenizer)
    stop = ends[0] if ends else tokenizer.special_id("eos_token")
    if stop is None or tail[-1:] == [stop]:
        return Turn(head, tail, ended=stop is not None)
    return Turn(head, [*tail, stop], ended=True)


def _encode_text(prompt: Prompt, answer: Mapping[str, Any], tokenizer: TextTokenizer) -> list[int]:
    """The text of an answer, behind the reasoning that its prompt begins, if it does. Spellings of
    control tokens in it stay text, as in a prompt.
    """
    cut, mark = tokenizer.control_tokens.cut, make_mark()
    text = cut(str(answer.get("content") or ""), mark)
    tags = tokenizer.reasoning_tags
    if prompt.within_reasoning and tags is not None:
        said = next((answer[key] for key in _REASONING if isinstance(answer.get(key), str)), "")
        text = f"{cut(said, mark)}\n{tags.end}\n\n{text}"
    pieces = text.split(mark)
    return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]
