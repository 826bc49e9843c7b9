"""Rows as tokens: encoded once, by the tokenizer and the chat template that serve the model.

A file of examples has a line of JSON for each row, a list of `{"texts": [{"tokens", "spans"}],
"liked"}`. A span is the begin and end of tokens that are learned. Supervised examples and judged
answers have one text; pairs have the chosen one and the rejected one. Those of encoders have the
query, the positive text and the negative ones.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from thrifty.engines.server.tools import ToolPlan, parse_tools
from thrifty.engines.server.turns import Turn, encode_turn
from thrifty.openai.errors import WireError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.train.rows import Method, Row

Span = tuple[int, int]


@dataclass(frozen=True)
class TokenText:
    """The tokens of a conversation, and which of them are learned."""

    tokens: Sequence[int]
    spans: tuple[Span, ...]

    @property
    def answer_begin(self) -> int:
        """Where the last span begins: behind the prompt of the last answer."""
        return self.spans[-1][0]

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which predictions are learned, [T - 1]: that of each token in a span."""
        found = np.zeros(len(self.tokens), np.bool_)
        for begin, end in self.spans:
            found[begin:end] = True
        return found[1:]


@dataclass(frozen=True)
class Example:
    """What one row, or one turn of a row, is learned from."""

    texts: tuple[TokenText, ...]
    liked: bool = True

    @property
    def tokens(self) -> int:
        """Tokens in all texts."""
        return sum(len(text.tokens) for text in self.texts)


def encode_row(
    row: Row, method: Method, tokenizer: TextTokenizer, window: int
) -> list[Example] | str:
    """The examples of a row, or why it is set aside (a key of `rows.REASONS`).

    A conversation is one example where each turn begins with the turn before it as it was
    generated. Templates that write earlier turns in another form, such as without their reasoning,
    make an example of each of those.
    """
    if method is Method.CONTRASTIVE:
        # As a server encodes inputs of /v1/embeddings.
        said = [tokenizer.encode(one["content"]) for one in (*row.messages, *row.answers)]
        if any(len(tokens) > window for tokens in said):
            return "too_long"
        return [Example(tuple(TokenText(tokens, ()) for tokens in said))]
    try:
        plan = parse_tools({"tools": row.tools})
        if method is Method.SFT:
            found = _encode_turns(row, tokenizer, plan)
        else:
            turns = [
                encode_turn(row.messages, one, tokenizer, plan, row.extra) for one in row.answers
            ]
            texts = [_join(turn) for turn in turns if turn is not None]
            found = [Example(tuple(texts), row.label)] if len(texts) == len(turns) else "form"
    except WireError:
        return "refused"
    except (TypeError, ValueError, KeyError, AttributeError):
        # A row is text from outside: a server would answer it with an error, too.
        return "refused"
    if isinstance(found, str):
        return found
    if any(len(text.tokens) > window for example in found for text in example.texts):
        return "too_long"
    return found


def _encode_turns(row: Row, tokenizer: TextTokenizer, plan: ToolPlan) -> list[Example] | str:
    examples: list[TokenText] = []
    for number in sorted(row.learned, reverse=True):
        turn = encode_turn(row.messages[:number], row.messages[number], tokenizer, plan, row.extra)
        if turn is None:
            return "form"
        text = _join(turn)
        for at, known in enumerate(examples):
            if known.tokens[: len(text.tokens)] == text.tokens:
                examples[at] = TokenText(known.tokens, (*text.spans, *known.spans))
                break
        else:
            examples.append(text)
    return [Example((text,)) for text in examples]


def _join(turn: Turn) -> TokenText:
    begin = len(turn.prompt)
    return TokenText([*turn.prompt, *turn.answer], ((begin, begin + len(turn.answer)),))


def write_row(file: TextIO, examples: Sequence[Example]) -> None:
    """Append the examples of one row, as one line."""
    line = [
        {
            "texts": [{"tokens": text.tokens, "spans": text.spans} for text in example.texts],
            "liked": example.liked,
        }
        for example in examples
    ]
    file.write(json.dumps(line) + "\n")


def read_examples(path: Path) -> Iterator[list[Example]]:
    """Read the examples of each row of a file, in their order, four bytes a token."""
    with path.open() as file:
        for line in file:
            yield [
                Example(tuple(map(_read_text, found["texts"])), found["liked"])
                for found in json.loads(line)
            ]


def _read_text(one: dict[str, Any]) -> TokenText:
    spans = tuple((begin, end) for begin, end in one["spans"])
    return TokenText(array("i", one["tokens"]), spans)
