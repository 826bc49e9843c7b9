"""Stop tokens are those of all of a model's files together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import make_gpt2_metadata
from tests.text import templates
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.stop_tokens import KNOWN_ENDS, find_ends
from thrifty.errors import IntegrityError

SIZE = 300
ENDOFTEXT, IM_START, IM_END = 0, 1, 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    Llama(layers=1).write_gguf(path, extra=make_gpt2_metadata(SIZE))
    return build_tokenizer(GgufFile(path))


def ends_of(folder: Path, tokenizer: Tokenizer, config: Any, generation: Any = None) -> Any:
    """The stop tokens of a model whose base ends with token 7."""
    Llama(layers=1, vocab=SIZE + 10).write_safetensors(folder, eos_token_id=7)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return load_decoder(folder).shape.eos_token_ids


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, (7,)),
        ({"eos_token": "<|im_end|>"}, None, (7, IM_END)),
        ({"eos_token": {"content": "<|im_end|>"}}, None, (7, IM_END)),
        ({"eos_token": "<|im_end|>"}, [IM_END, 5], (IM_END, 5, 7)),
        ({"eos_token": "!"}, None, (7, 3)),
        ({"eos_token": "<|unknown|>"}, None, (7,)),
        ({"eos_token": None}, None, (7,)),
        ({"chat_template": templates.CHATML}, None, (7, IM_END)),
        ({"chat_template": "<|endoftext|></s>"}, 9, (9, 7, ENDOFTEXT)),
        ({"chat_template": [{"name": "default", "template": "x"},
                            {"name": "tool_use", "template": "<|im_end|>"}]}, None, (7, IM_END)),
    ],
)  # fmt: skip
def test_all_files_together_say_what_ends_an_answer(
    tmp_path: Path, tokenizer: Tokenizer, config: Any, generation: Any, expected: Any
) -> None:
    assert ends_of(tmp_path, tokenizer, config, generation) == expected


def test_special_tokens_of_an_older_file_end_an_answer_too(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for eos in ("<|im_end|>", {"content": "<|im_end|>", "lstrip": False}):
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": eos}))
        assert ends_of(tmp_path, tokenizer, {"eos_token": "!"}) == (7, 3, IM_END)
        assert ends_of(tmp_path, tokenizer, {}) == (7, IM_END)


def test_ends_that_the_model_cannot_say_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert ends_of(tmp_path, tokenizer, {}, [SIZE + 9, SIZE + 10]) == (SIZE + 9, 7)


def test_template_of_a_gguf_says_what_ends_an_answer(tmp_path: Path) -> None:
    metadata = make_gpt2_metadata(SIZE, eos_token_id=7)
    for number, template in enumerate((templates.CHATML, "<|im_start|>", None)):
        extra = {**metadata, **({"tokenizer.chat_template": template} if template else {})}
        Llama(layers=1, vocab=SIZE).write_gguf(tmp_path / str(number) / "m.gguf", extra=extra)
    found = [load_decoder(tmp_path / str(n)).shape.eos_token_ids for n in range(3)]
    assert found == [(7, IM_END), (7,), (7,)]


def test_end_of_a_message_before_the_answer_is_no_end() -> None:
    tokens = {end: index for index, end in enumerate(KNOWN_ENDS)}
    both = find_ends(["<|start|>x<|end|>", "<|return|>"], tokens)
    assert both == (tokens["<|return|>"],)
    assert find_ends(["<|end|>"], tokens) == (tokens["<|end|>"],)
    assert find_ends(["<|im_end|>"], {}) == ()


@pytest.mark.parametrize(
    "added", [[{"content": "a"}], [7], {"a": 1}, [{"content": "a", "id": "x"}]]
)
def test_damaged_tokenizers_are_named(tmp_path: Path, tokenizer: Tokenizer, added: Any) -> None:
    ends_of(tmp_path, tokenizer, {})
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {}}))
    with pytest.raises(IntegrityError, match=r"tokenizer.json is damaged: its added tokens"):
        load_decoder(tmp_path)
