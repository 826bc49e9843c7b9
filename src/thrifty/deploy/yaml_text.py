"""YAML that people can read and compare: keys as they were written, texts as blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import yaml


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out each time."""
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """Texts of several lines as blocks."""
        style = "|" if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    yaml_representers: ClassVar[dict[Any, Any]] = {
        **yaml.SafeDumper.yaml_representers,
        str: represent_text,
    }


def dump_yaml(value: Any) -> str:
    """One document."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)


def dump_documents(values: Iterable[Any]) -> str:
    """Several documents."""
    return "---\n".join(dump_yaml(value) for value in values)
