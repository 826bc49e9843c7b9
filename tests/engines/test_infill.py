"""Prompts that ask for the middle of a text, in the tokens of each family."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from thrifty.engines.echo.backend import TEMPLATE, make_tokenizer
from thrifty.engines.server.backend import ModelFacts
from thrifty.engines.server.infill import MARKERS, Markers
from thrifty.engines.server.request import parse_completion
from thrifty.openai.errors import WireError
from thrifty.text.tokenizer import TextTokenizer
from thrifty.types import Family

END = 256


def tokenizer_with(*names: str, start: bool = False) -> TextTokenizer:
    """Tokens are bytes; these names are tokens from 257 on."""
    tokenizer: Tokenizer = make_tokenizer().tokenizer
    tokenizer.add_special_tokens(list(names))
    if start:
        tokenizer.post_processor = TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", END)]
        )
    return TextTokenizer(tokenizer, TEMPLATE)


def complete(tokenizer: TextTokenizer, **fields: Any) -> Any:
    body = {"prompt": "ab", "suffix": "yz", **fields}
    return parse_completion(body, tokenizer, ModelFacts(Family.DECODER, 64, (END,)))


@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("start", [False, True])
def test_prompt_stands_before_and_the_suffix_behind(markers: Markers, start: bool) -> None:
    names = [one for one in (markers.prefix, markers.suffix, markers.middle, *markers.ends) if one]
    tokenizer = tokenizer_with(*names, start=start)
    ids = [tokenizer.tokenizer.token_to_id(name) for name in names]
    request = complete(tokenizer, stop_token_ids=[5])
    (prompt,) = request.prompts
    if start:
        assert prompt.pop(0) == END
    before, after = list(b"ab"), list(b"yz")
    if markers.middle is None:
        assert prompt == [ids[1], *after, ids[0], *before]
        assert request.sampling.stop_token_ids == (5,)
    else:
        assert prompt == [ids[0], *before, ids[1], *after, ids[2]]
        assert request.sampling.stop_token_ids == (5, *ids[3:])


def test_the_prompt_may_be_empty_and_several() -> None:
    tokenizer = tokenizer_with("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    assert complete(tokenizer, prompt=["", "a"]).prompts == [
        [257, 258, *b"yz", 259], [257, *b"a", 258, *b"yz", 259],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "fields", "code"),
    [
        ((), {}, "unsupported_parameter"),
        (("<fim_prefix>", "<fim_suffix>"), {}, "unsupported_parameter"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), {"echo": True}, "invalid_value"),
    ],
)
def test_what_a_model_cannot_fill_in_is_refused(names: Any, fields: Any, code: str) -> None:
    with pytest.raises(WireError) as refusal:
        complete(tokenizer_with(*names), **fields)
    assert (refusal.value.status, refusal.value.param, refusal.value.code) == (400, "suffix", code)


def test_an_empty_suffix_is_none() -> None:
    assert complete(tokenizer_with(), suffix="").prompts == [list(b"ab")]
