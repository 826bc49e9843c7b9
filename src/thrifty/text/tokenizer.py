"""Tokenization, chat templates, and incremental decoding of generated tokens."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from thrifty.artifacts.inspect import read_chat_template
from thrifty.openai.errors import bad_request
from thrifty.text.vocabulary import decode_piece

_BROKEN = "\ufffd"
"""The replacement for bytes that are not a valid character."""


class TextTokenizer:
    """A tokenizer with its chat template.

    Templates run in Jinja's sandbox, with the helper functions that transformers provides.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None,
        *,
        special_tokens: dict[str, str] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.vocabulary_size = 1 + max(tokenizer.get_vocab().values(), default=-1)
        """All token ids are below it."""
        self.chat_template = chat_template
        self._special_tokens = special_tokens or {}
        self._template = _compile(chat_template) if chat_template else None

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Load the tokenizer in `folder`, from the files that transformers saves."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config_path = folder / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(config_path.read_text()) if config_path.exists() else {}
        special = {}
        for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = config.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                special[key] = value
        return cls(tokenizer, read_chat_template(folder), special_tokens=special)

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template renders tools."""
        return self.chat_template is not None and "tools" in self.chat_template

    def special_id(self, name: str) -> int | None:
        """The id of `bos_token`, `eos_token` etc.; None if the settings name none."""
        text = self._special_tokens.get(name)
        return None if text is None else self.tokenizer.token_to_id(text)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """The text of a single token, for log-probabilities."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a single token, which may be a part of a character."""
        text = self.token_text(token_id)
        piece = self.tokenizer.id_to_token(token_id) if _BROKEN in text else None
        return text.encode() if piece is None else decode_piece(self.tokenizer, piece)

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation. Raises a 400 error if the template rejects it."""
        if self._template is None:
            raise bad_request(
                "this model has no chat template; use /v1/completions, or add a "
                "chat_template.jinja to the model",
                "messages",
                "no_chat_template",
            )
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **(extra or {}),
            )
        except Exception as error:
            # A template is a program, which may fail on unexpected messages in any way.
            raise bad_request(
                f"the model's chat template rejects these messages: {error}",
                "messages",
                "chat_template_error",
            ) from None


def _compile(template: str) -> jinja2.Template:
    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
            sort_keys=sort_keys,
        )  # fmt: skip

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


class _GenerationBlock(Extension):
    """`{% generation %}`: marks the model's turn for training; it has no effect on a prompt."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class IncrementalText:
    """Text that grows by tokens; emits only what later tokens cannot change.

    Characters that span tokens are held back until they are complete, and so is any end of the text
    that may be the start of a stop string.
    """

    __slots__ = ("_decoder", "_held", "_pending", "_stops", "_tokenizer", "length", "stopped")

    def __init__(self, tokenizer: TextTokenizer, stops: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer.tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stops = stops
        self._held = ""
        self._pending: list[int] = []
        self.length = 0
        """How many characters the tokens so far amount to, with those that are held back."""
        self.stopped = False

    def feed(self, token_id: int, *, check_stops: bool = True) -> str:
        """The text that is final after this token; sets `stopped` at a stop string."""
        try:
            piece = self._decoder.step(self._tokenizer, token_id)
        except Exception:
            # The library fails on some sequences of invalid bytes; decoding starts afresh.
            self._decoder = DecodeStream(skip_special_tokens=True)
            piece = self._decoder.step(self._tokenizer, token_id)
        if not piece:
            self._pending.append(token_id)
            return ""
        self._pending.clear()
        self.length += len(piece)
        if not self._stops:
            return str(piece)
        before = len(self._held)
        self._held += piece
        if check_stops:
            # Ignore stop strings that end in earlier text, which was fed before they were checked.
            found = (self._held.find(s, max(0, before - len(s) + 1)) for s in self._stops)
            cut = min((at for at in found if at >= 0), default=-1)
            if cut >= 0:
                self.stopped = True
                text, self._held = self._held[:cut], ""
                return text
        keep = _count_possible_start(self._held, self._stops)
        text = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return text

    def flush(self) -> str:
        """The text still held back, after the last token. An incomplete final character is
        dropped.
        """
        text, self._held = self._held, ""
        if self._pending:
            text += self._tokenizer.decode(self._pending).rstrip(_BROKEN)
            self._pending.clear()
        return text


def _count_possible_start(text: str, stops: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that is the start of one of `stops`."""
    for length in range(min(len(text), max(map(len, stops)) - 1), 0, -1):
        tail = text[-length:]
        if any(stop.startswith(tail) for stop in stops):
            return length
    return 0
