"""The chat templates of a model, by name, from every place that transformers and GGUF keep them.

A model may have several. `default` is for plain conversations, `tool_use` for requests with tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.artifacts.inspect import read_json
from thrifty.errors import IntegrityError

DEFAULT, TOOL_USE = "default", "tool_use"
FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"
"""Where transformers saves the default template, and the others."""

_OTHER_FOLDER = "chat_templates"
_GGUF_KEY = "tokenizer.chat_template"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names become names of files."""


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The templates in `folder`. There is always a `default` if there is any. Files of their own
    replace what `tokenizer_config.json` holds. Raises `IntegrityError`.
    """
    found = {
        path.stem: path.read_text(encoding="utf-8-sig")
        for name in (_OTHER_FOLDER, FOLDER)
        for path in sorted((folder / name).glob("*.jinja"))
    }
    plain = folder / FILE
    if plain.exists():
        found[DEFAULT] = plain.read_text(encoding="utf-8-sig")
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if not found and path.exists():
            found = _read_setting(read_json(path).get("chat_template"), path)
    return _with_default(found, folder)


def read_gguf_templates(metadata: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The templates in a GGUF's metadata. Raises `IntegrityError`."""
    named = {
        DEFAULT if key == _GGUF_KEY else key.removeprefix(f"{_GGUF_KEY}."): value
        for key, value in metadata.items()
        if key == _GGUF_KEY or key.startswith(f"{_GGUF_KEY}.")
    }
    return _with_default(_check(named, path), path)


def describe_gguf_templates(templates: Mapping[str, str]) -> dict[str, Any]:
    """GGUF metadata with these templates."""
    others = [name for name in templates if name != DEFAULT]
    found: dict[str, Any] = {f"{_GGUF_KEY}.{name}": templates[name] for name in others}
    if DEFAULT in templates:
        found[_GGUF_KEY] = templates[DEFAULT]
    if others:
        found["tokenizer.chat_templates"] = others
    return found


def write_chat_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Write templates as transformers saves them."""
    for name, text in templates.items():
        path = folder / FILE if name == DEFAULT else folder / FOLDER / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _read_setting(value: Any, path: Path) -> dict[str, str]:
    """The setting `chat_template`: one template, a list of named ones, or a mapping."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is damaged: 'chat_template' holds no template")
    return _check(value, path)


def _check(named: Mapping[Any, Any], path: Path) -> dict[str, str]:
    for name, text in named.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(text, str):
            raise IntegrityError(f"{path} is damaged: it has a chat template called {name!r:.60}")
    return dict(named)


def _with_default(found: dict[str, str], source: Path) -> dict[str, str]:
    found = _check(found, source)
    if found and DEFAULT not in found:
        first = next((name for name in found if name != TOOL_USE), TOOL_USE)
        found[DEFAULT] = found[first]
    return found
