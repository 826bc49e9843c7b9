"""Reading a spec's file: YAML, with the line of each key, and the keys that are there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from thrifty.errors import Problem, SpecError

MAX_SPEC_BYTES = 1_000_000
"""No honest spec is larger; a larger file is a mistake (a model, say)."""
MAX_KEYS = 10_000
MAX_DEPTH = 50
"""Anchors can make a small file mean a huge tree; lines are noted for so much of it."""


class _Loader(yaml.SafeLoader):
    """YAML without dates: a name such as `2024-01-31` is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_spec_file(path: Path) -> tuple[dict[str, Any], dict[str, int], list[Problem]]:
    """What the file says, the line of each key, and the keys that are there twice."""

    def refuse(message: str) -> SpecError:
        return SpecError([Problem("", message)], str(path))

    try:
        size = path.stat().st_size
        if size > MAX_SPEC_BYTES:
            raise refuse(
                f"{path} has {size} bytes; a spec has at most {MAX_SPEC_BYTES}. Is it a model? "
                f"Then: thrifty up ./{path.name}"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 text (byte {error.start})") from None
    return read_spec_text(text, str(path))


def read_spec_text(text: str, source: str) -> tuple[dict[str, Any], dict[str, int], list[Problem]]:
    """As `read_spec_file`, of a text that is there already."""

    def refuse(message: str, line: int | None = None) -> SpecError:
        return SpecError([Problem("", message, line)], source)

    lines: dict[str, int] = {}
    duplicates: list[Problem] = []
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _collect_lines(root, "", lines, duplicates)
        data = loader.construct_document(root) if root is not None else None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise refuse(f"is not valid YAML: it holds the character {character}", line) from None
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        what = error.problem or error.context
        raise refuse(f"is not valid YAML: {what}", where.line + 1 if where else None) from None
    except ValueError as error:
        # Python's own words for a number of thousands of digits, say.
        raise refuse(f"is not valid YAML: {error}") from None
    except RecursionError:
        raise refuse("is not valid YAML: it is nested too deeply") from None
    if data is None:
        return {}, {}, []
    if not isinstance(data, dict):
        kind = "list" if isinstance(data, list) else "single value"
        raise refuse(f"must be a mapping of keys to values, not a {kind}", 1)
    return data, lines, duplicates


def _collect_lines(
    node: yaml.Node | None,
    prefix: str,
    lines: dict[str, int],
    duplicates: list[Problem],
    depth: int = 0,
    *,
    merged: bool = False,
) -> None:
    """Note the line of every key below `node`; note keys that appear twice.

    `merged` is for what `<<` brings in: it gives way to what is written out.
    """
    if depth > MAX_DEPTH:
        return
    if isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            if len(lines) >= MAX_KEYS:
                return
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            _collect_lines(value, f"{prefix}{index}.", lines, duplicates, depth + 1, merged=merged)
    if not isinstance(node, yaml.MappingNode):
        return
    brought_in: list[yaml.Node] = []
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            brought_in += value.value if isinstance(value, yaml.SequenceNode) else [value]
            continue
        if len(lines) >= MAX_KEYS:
            return
        path = f"{prefix}{key.value}"
        line = key.start_mark.line + 1
        if path in lines:
            if not merged:
                duplicates.append(
                    Problem(path, f"is set twice, first in line {lines[path]}; keep one", line)
                )
            continue
        lines[path] = line
        _collect_lines(value, f"{path}.", lines, duplicates, depth + 1, merged=merged)
    for other in brought_in:
        _collect_lines(other, prefix, lines, duplicates, depth + 1, merged=True)
