"""From a conversation to the tokens of a prompt, by the model's own chat template.

A template may refuse what others take. It gets the conversation in the form that its habits ask
for; if it refuses that, with calls and results written as text; at last in the plainest form there
is, in which user and assistant alternate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from thrifty.engines.server.backend import ModelFacts
from thrifty.engines.server.messages import Message, check_messages
from thrifty.engines.server.tools import (
    ToolPlan,
    add_to_system,
    describe_tools,
    render_history,
)
from thrifty.openai.errors import bad_request
from thrifty.text.chat_template import ARGUMENTS, EFFORT, ChatTemplate, Habits, TemplateRefusal
from thrifty.text.control_tokens import make_mark
from thrifty.text.fit_messages import fit_calls, fit_roles
from thrifty.text.tokenizer import TextTokenizer, refuse_messages

SHORT_CHARS = 4096


@dataclass(frozen=True)
class Prompt:
    """A rendered and tokenized conversation."""

    ids: list[int]
    within_reasoning: bool = False
    """Whether the answer begins within the model's reasoning."""


@dataclass(frozen=True)
class _Conversation:
    """What is rendered: all that clients sent, checked."""

    messages: list[Message]
    plan: ToolPlan
    extra: Mapping[str, Any]
    add_generation_prompt: bool
    end_mark: str
    """Ends the final message where the answer continues it; else empty."""


def build_prompt(
    body: Mapping[str, Any],
    tokenizer: TextTokenizer,
    plan: ToolPlan,
    *,
    facts: ModelFacts | None = None,
    keep: int | None = None,
) -> Prompt:
    """The prompt for the conversation in a request's body.

    With `facts`, a prompt that cannot fit is refused before it is tokenized. `keep` is how many
    tokens at its end to keep. Raises a 400 that names the fault.
    """
    conversation = _read_conversation(body, plan)
    template = tokenizer.find_template(tools=plan.active)
    _check_effort(body, tokenizer, template)
    # Nearly no conversation holds the spelling of a control token; then nothing is cut.
    text, mark = _render(conversation, template), None
    if facts is not None and keep is None:
        check_text(text, tokenizer, facts, "messages")
    written = (conversation.messages, plan.tools, conversation.extra)
    if any(map(tokenizer.control_tokens.occur_in, written)):
        mark = make_mark()
        text = _render(_cut(conversation, tokenizer, mark), template)
    # The template writes the special tokens itself.
    ids = _encode([text] if mark is None else text.split(mark), tokenizer, keep)
    if not ids:
        raise bad_request(
            "the model's chat template makes nothing of these messages", "messages", "invalid_value"
        )
    within = _is_within_reasoning(conversation, text, tokenizer)
    return Prompt(ids, within)


def _encode(pieces: list[str], tokenizer: TextTokenizer, keep: int | None) -> list[int]:
    """The tokens of a text in pieces; the last `keep` of them."""
    if keep is None:
        return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]
    ids: list[int] = []
    for piece in reversed(pieces):
        if len(ids) < keep:
            part = tokenizer.cut_text(piece, keep - len(ids), keep_end=True)
            ids = tokenizer.encode(part, add_special_tokens=False) + ids
    return ids[-keep:]


def check_text(text: str, tokenizer: TextTokenizer, facts: ModelFacts, param: str) -> None:
    """Raise a 400 where the length of a text alone proves that its tokens do not fit. Tokenizing
    megabytes takes seconds; short texts are tokenized, so that their tokens can be told.
    """
    if len(text) <= SHORT_CHARS:
        return
    least = tokenizer.count_least(text, enough=facts.context_length + 1)
    if least > facts.context_length:
        raise bad_request(
            f"This model's maximum context length is {facts.context_length} tokens. However, your "
            f"{param} has {len(text)} characters, which are more than {facts.context_length} tokens "
            f"in any case (at least {least}). Please reduce the length of the {param}.",
            param,
            "context_length_exceeded",
        )


def _check_effort(
    body: Mapping[str, Any], tokenizer: TextTokenizer, template: ChatTemplate
) -> None:
    """Refuse an effort of none where the model would reason all the same."""
    reasons = tokenizer.reasoning_tags is not None and not template.takes_effort
    if body.get(EFFORT) == "none" and reasons and not body.get("chat_template_kwargs"):
        raise bad_request(
            "This model's chat template takes no 'reasoning_effort', so that 'none' would not keep it "
            "from reasoning; set what the template takes for it in 'chat_template_kwargs', such as "
            '{"enable_thinking": false}.',
            EFFORT,
            "unsupported_parameter",
        )


def _read_conversation(body: Mapping[str, Any], plan: ToolPlan) -> _Conversation:
    extra = body.get("chat_template_kwargs") or {}
    reserved = sorted(ARGUMENTS & extra.keys())
    if reserved:
        raise bad_request(
            f"'chat_template_kwargs' cannot set '{reserved[0]}'; use the request's own field.",
            "chat_template_kwargs",
            "invalid_value",
        )
    if (effort := body.get(EFFORT)) is not None:
        extra = {EFFORT: effort, **extra}
    messages = check_messages(body["messages"])
    if not body.get("continue_final_message"):
        generates = body.get("add_generation_prompt") is not False
        return _Conversation(messages, plan, extra, generates, "")
    if body.get("add_generation_prompt"):
        raise bad_request(
            "'continue_final_message' and 'add_generation_prompt' cannot both be true: an answer "
            "either continues the final message or begins a new one.",
            "continue_final_message",
            "invalid_value",
        )
    if messages[-1].get("tool_calls"):
        raise bad_request(
            "'continue_final_message' needs a final message of text, not one with calls.",
            "continue_final_message",
            "invalid_value",
        )
    mark = make_mark()
    final = {**messages[-1], "content": messages[-1]["content"] + mark}
    return _Conversation([*messages[:-1], final], plan, extra, False, mark)


def _cut(conversation: _Conversation, tokenizer: TextTokenizer, mark: str) -> _Conversation:
    """The conversation with a mark within each spelling of a control token."""
    cut, plan = tokenizer.control_tokens.cut, conversation.plan
    return _Conversation(
        cut(conversation.messages, mark),
        replace(plan, tools=cut(plan.tools, mark)),
        cut(conversation.extra, mark),
        conversation.add_generation_prompt,
        conversation.end_mark,
    )


def _render(conversation: _Conversation, template: ChatTemplate) -> str:
    """The prompt's text. Raises a 400 where the template takes the conversation in no form."""
    first: TemplateRefusal | None = None
    for messages, tools in _forms(conversation, template.habits):
        try:
            text = template.render(
                messages,
                tools=tools,
                add_generation_prompt=conversation.add_generation_prompt,
                extra=conversation.extra,
            )
        except TemplateRefusal as error:
            first = first or error
            continue
        if not conversation.end_mark:
            return text
        end = text.rfind(conversation.end_mark)
        if end >= 0:
            return text[:end]
        first = first or TemplateRefusal("it does not write the final message")
    assert first is not None, "there is always a form"
    raise refuse_messages(first)


def _forms(
    conversation: _Conversation, habits: Habits
) -> Iterator[tuple[list[Message], list[dict[str, Any]] | None]]:
    """The messages and tools to render, most faithful first."""
    plan, messages = conversation.plan, conversation.messages
    as_text = render_history(messages)
    in_words = add_to_system(as_text, describe_tools(plan)) if plan.active else as_text
    if habits.writes_tools or not plan.active:
        tools = plan.tools if plan.active else None
        if habits.writes_calls:
            yield fit_roles(fit_calls(messages, habits), habits), tools
        yield fit_roles(as_text, habits), tools
    yield fit_roles(in_words, habits), None
    yield fit_roles(in_words, Habits()), None


def _is_within_reasoning(conversation: _Conversation, text: str, tokenizer: TextTokenizer) -> bool:
    """Whether an answer to this prompt begins within the model's reasoning."""
    tags = tokenizer.reasoning_tags
    if tags is None:
        return False
    if conversation.end_mark:
        content: str = conversation.messages[-1]["content"]
        return content.rfind(tags.begin) > content.rfind(tags.end)
    return conversation.add_generation_prompt and text.rstrip().endswith(tags.begin)
