"""YAML that people can read and compare: keys as they were written, texts as blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import yaml


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


class _Dumper(yaml.SafeDumper):
    yaml_representers: ClassVar[Any] = {
        **yaml.SafeDumper.yaml_representers,
        str: _represent_text,
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out each time."""
        return True


def dump_yaml(value: Any) -> str:
    """One document."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


def dump_documents(values: Iterable[Any]) -> str:
    """Several documents."""
    return "---\n".join(dump_yaml(value) for value in values)
