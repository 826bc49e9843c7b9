"""Chat templates are found wherever a model keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thrifty.artifacts.chat_templates import (
    describe_gguf_templates,
    read_chat_templates,
    read_gguf_templates,
    write_chat_templates,
)
from thrifty.errors import IntegrityError


def write_config(folder: Path, value: Any, name: str = "tokenizer_config.json") -> None:
    (folder / name).write_text(json.dumps({"chat_template": value}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, {}),
        ("a", {"default": "a"}),
        ([], {}),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
         {"default": "d", "tool_use": "t"}),
        ([{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}],
         {"default": "r", "tool_use": "t", "rag": "r"}),
        ([{"name": "tool_use", "template": "t"}], {"default": "t", "tool_use": "t"}),
        ({"default": "d", "tool_use": "t"}, {"default": "d", "tool_use": "t"}),
    ],
)  # fmt: skip
def test_setting_holds_one_or_several(tmp_path: Path, value: Any, expected: Any) -> None:
    assert read_chat_templates(tmp_path) == {}
    write_config(tmp_path, value)
    assert read_chat_templates(tmp_path) == expected
    (tmp_path / "tokenizer_config.json").unlink()
    write_config(tmp_path, value, "chat_template.json")
    assert read_chat_templates(tmp_path) == expected


@pytest.mark.parametrize("folder", ["additional_chat_templates", "chat_templates"])
def test_files_replace_the_setting(tmp_path: Path, folder: str) -> None:
    write_config(tmp_path, [{"name": "default", "template": "old"}, {"name": "x", "template": "x"}])
    (tmp_path / "chat_template.jinja").write_text("d")
    assert read_chat_templates(tmp_path) == {"default": "d"}
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "tool_use.jinja").write_text("t")
    assert read_chat_templates(tmp_path) == {"default": "d", "tool_use": "t"}
    (tmp_path / "chat_template.jinja").unlink()
    assert read_chat_templates(tmp_path) == {"default": "t", "tool_use": "t"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    templates = {"default": "d", "tool_use": "tü"}
    write_chat_templates(tmp_path, templates)
    assert read_chat_templates(tmp_path) == templates
    metadata = describe_gguf_templates(templates)
    assert metadata == {
        "tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "tü",
        "tokenizer.chat_templates": ["tool_use"],
    }  # fmt: skip
    assert read_gguf_templates(metadata, tmp_path) == templates
    assert describe_gguf_templates({"default": "d"}) == {"tokenizer.chat_template": "d"}
    assert read_gguf_templates({"tokenizer.ggml.model": "gpt2"}, tmp_path) == {}


@pytest.mark.parametrize(
    "value",
    [7, [7], [{}], [{"name": "a"}], [{"name": "../a", "template": "x"}],
     [{"name": ".a", "template": "x"}], [{"name": "default", "template": 7}], {"": "x"}],
)  # fmt: skip
def test_damaged_settings_are_named(tmp_path: Path, value: Any) -> None:
    write_config(tmp_path, value)
    with pytest.raises(IntegrityError, match=r"tokenizer_config.json is damaged"):
        read_chat_templates(tmp_path)


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    for metadata in ({"tokenizer.chat_template": 7}, {"tokenizer.chat_template.../x": "a"}):
        with pytest.raises(IntegrityError, match=r"is damaged: it has a chat template called"):
            read_gguf_templates(metadata, tmp_path / "m.gguf")
