"""Tokenization, chat templates, and incremental decoding of generated tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from thrifty.artifacts.chat_templates import DEFAULT, TOOL_USE, read_chat_templates
from thrifty.artifacts.inspect import read_json
from thrifty.artifacts.stop_tokens import read_token_text
from thrifty.openai.errors import WireError, bad_request
from thrifty.text.chat_template import ChatTemplate, TemplateRefusal
from thrifty.text.control_tokens import ControlTokens
from thrifty.text.reasoning import Tags, find_tags
from thrifty.text.token_bounds import find_bound
from thrifty.text.vocabulary import decode_piece

CUT_MARGIN = 64
"""Tokens between a cut and those that are wanted."""
CUT_CHARS = 8
"""For how many characters a token is taken at first; there are 3 to 5 in most texts."""
_BROKEN = "\ufffd"
"""The replacement for bytes that are not a valid character."""


@dataclass(frozen=True)
class PairTokens:
    """Two texts as one sequence of tokens, as cross-encoders take them."""

    ids: list[int]
    second_at: int
    """Where the segment of the second text begins; the number of tokens where the tokenizer tells
    the segments apart by special tokens alone.
    """
    chars: int
    """How many characters of the second text are in it."""


class TextTokenizer:
    """A tokenizer with its chat templates."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | Mapping[str, str] | None,
        *,
        special_tokens: dict[str, str] | None = None,
    ) -> None:
        """`chat_template` is one template, or several by name, `default` among them."""
        self.tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = tokenizer.get_vocab()
        self.vocabulary_size = 1 + max(vocabulary.values(), default=-1)
        """All token ids are below it."""
        self._bound = find_bound(tokenizer, vocabulary)
        self._special_tokens = special_tokens or {}
        named = {DEFAULT: chat_template} if isinstance(chat_template, str) else chat_template or {}
        self.templates_sha256 = hashlib.sha256(
            json.dumps([*sorted(named.items()), *sorted(self._special_tokens.items())]).encode()
        ).hexdigest()
        """A checksum of all that shapes a rendered conversation, besides the vocabulary."""
        self._templates = {
            name: ChatTemplate(source, self._special_tokens)
            for name, source in named.items()
            if name in (DEFAULT, TOOL_USE)
        }
        self._around = _find_around(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self.control_tokens = ControlTokens(t.content for t in added.values() if t.special)
        ids = {token.content: index for index, token in added.items()}
        self.reasoning_tags: Tags | None = find_tags(named.get(DEFAULT, ""), ids)
        """What encloses the model's reasoning, if it thinks."""
        self.hidden_tags = {
            ids[tag]: tag
            for tag in self.reasoning_tags or ()
            if tag in ids and added[ids[tag]].special
        }
        """Those of the tags that decoding leaves out, by their ids."""

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Load the tokenizer in `folder`, from the files that transformers saves."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config_path = folder / "tokenizer_config.json"
        config: dict[str, Any] = read_json(config_path) if config_path.exists() else {}
        texts = {
            key: read_token_text(config, key)
            for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        special = {key: text for key, text in texts.items() if text is not None}
        return cls(tokenizer, read_chat_templates(folder), special_tokens=special)

    def find_template(self, *, tools: bool = False) -> ChatTemplate:
        """The chat template, for a conversation with or without tools. Raises a 400 if the model
        has none.
        """
        template = self._templates.get(TOOL_USE) if tools else None
        template = template or self._templates.get(DEFAULT)
        if template is None:
            raise bad_request(
                "this model has no chat template; use /v1/completions, or add a "
                "chat_template.jinja to the model",
                "messages",
                "no_chat_template",
            )
        return template

    def find_turn_ends(self) -> tuple[int, ...]:
        """The tokens that the chat templates write behind an answer."""
        named = {
            token.content: index
            for index, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special or token.content.startswith("<")
        }
        ends = [end for template in self._templates.values() for end in template.find_ends(named)]
        return tuple(dict.fromkeys(ends))

    def special_id(self, name: str) -> int | None:
        """The id of `bos_token`, `eos_token` etc.; None if the settings name none."""
        text = self._special_tokens.get(name)
        return None if text is None else self.tokenizer.token_to_id(text)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`. Other threads run meanwhile."""
        # `encode` would keep the interpreter lock.
        (encoding,) = self.tokenizer.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        ids: list[int] = encoding.ids
        return ids

    def encode_pairs(
        self, first: str, seconds: list[str], most: int | None = None
    ) -> list[PairTokens]:
        """`first` with each of `seconds`. A second text is cut so that both have at most `most`
        tokens, unless nothing would be left of it. Other threads run meanwhile.
        """
        encode = self.tokenizer.encode_batch_fast if most is None else self.tokenizer.encode_batch
        if most is not None:
            seconds = [self.cut_text(text, most, keep_end=False) for text in seconds]
        before, *others = encode([first, *seconds], add_special_tokens=False)
        room = 0
        if most is not None:
            room = most - len(before) - self.tokenizer.num_special_tokens_to_add(True)
        pairs = []
        for text, encoding in zip(seconds, others, strict=True):
            chars = len(text)
            if 0 < room < len(encoding):
                chars = encoding.offsets[room - 1][1]
                encoding.truncate(room)
            pair = self.tokenizer.post_process(before, encoding, add_special_tokens=True)
            kinds: list[int] = pair.type_ids
            second_at = kinds.index(1) if 1 in kinds else len(kinds)
            pairs.append(PairTokens(pair.ids, second_at, chars))
        return pairs

    def count_least(self, text: str, enough: int = 2**31) -> int:
        """A number of tokens that `text` has at least, found without tokenizing it. Words are
        counted up to `enough`.
        """
        return self._bound.count_least(text, enough)

    def cut_text(self, text: str, tokens: int, *, keep_end: bool) -> str:
        """The end or the beginning of a text, with more than so many tokens, if it is much longer.

        Tokenizing megabytes takes seconds. The cut is at a space, if there is one, and so far away
        from the tokens that are wanted that they are those of the whole text, unless that is one
        word of thousands of characters.
        """
        wanted = tokens + CUT_MARGIN
        size = CUT_CHARS * wanted
        while 2 * size < len(text):
            if keep_end:
                space = text.find(" ", len(text) - size, len(text) - size // 2)
                part = text[space if space >= 0 else len(text) - size :]
            else:
                space = text.rfind(" ", size // 2, size)
                part = text[: space if space >= 0 else size]
            if len(self.encode(part, add_special_tokens=False)) >= wanted:
                return part
            size *= 4
        return text

    def encode_truncated(self, text: str, most: int, *, keep_end: bool) -> list[int]:
        """At most `most` tokens: the beginning of `text` or its end, and the special tokens that
        belong around it. None of the text remains if `most` is not above `special_count`.
        """
        before, after = self._around
        room = max(0, most - self.special_count)
        text = self.cut_text(text, room, keep_end=keep_end)
        ids = self.encode(text, add_special_tokens=False)
        kept = ids[max(0, len(ids) - room) :] if keep_end else ids[:room]
        return [*before, *kept, *after]

    @property
    def special_count(self) -> int:
        """How many special tokens belong around a text."""
        return sum(map(len, self._around))

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
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt for a conversation. Raises a 400 if the template rejects it."""
        try:
            return self.find_template().render(
                messages, add_generation_prompt=add_generation_prompt
            )
        except TemplateRefusal as error:
            raise refuse_messages(error) from None


def refuse_messages(error: TemplateRefusal) -> WireError:
    """The 400 for messages that a template does not take."""
    return bad_request(
        f"the model's chat template rejects these messages: {error}",
        "messages",
        "chat_template_error",
    )


def _find_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    encoding = tokenizer.encode("a")
    mask, ids = encoding.special_tokens_mask, encoding.ids
    if 0 not in mask:
        return ids, []
    last = len(mask) - mask[::-1].index(0)
    return ids[: mask.index(0)], ids[last:]


class IncrementalText:
    """Text that grows by tokens; emits only what later tokens cannot change.

    Characters that span tokens are held back until they are complete, and so is any end of the text
    that may be the start of a stop string.
    """

    __slots__ = (
        "_decoder", "_held", "_hidden_tags", "_pending", "_stops", "_tokenizer", "length", "stopped",
    )  # fmt: skip

    def __init__(self, tokenizer: TextTokenizer, stops: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer.tokenizer
        self._hidden_tags = tokenizer.hidden_tags
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
        if token_id in self._hidden_tags:
            piece = f"{piece or ''}{self._hidden_tags[token_id]}"
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
