"""What sections of a spec are made of: values with units, short forms, a mapping that is closed."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from thrifty.units import parse_bytes, parse_count, parse_duration_s

Duration = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    WithJsonSchema({"type": "string", "title": "duration"}),
]
Bytes = Annotated[
    int, BeforeValidator(parse_bytes), WithJsonSchema({"type": "string", "title": "size"})
]
Count = Annotated[
    int, BeforeValidator(parse_count), WithJsonSchema({"type": "string", "title": "count"})
]


def _refuse_boolean(value: Any) -> Any:
    """Python takes `true` for 1; who writes `port: true` means something else."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {value!r}")
    return value


Integer = Annotated[int, BeforeValidator(_refuse_boolean)]
Number = Annotated[float, BeforeValidator(_refuse_boolean)]

MAX_NAME = 64
_SEGMENT = "[A-Za-z0-9][A-Za-z0-9._:-]*"
Name = Annotated[str, Field(pattern=f"^{_SEGMENT}(/{_SEGMENT})*$", max_length=MAX_NAME)]
"""What clients write in `model`, such as `org/model` or `llama3.2:1b`. No segment is a dot, so that
no name leaves the folder of a path that it is part of."""
LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$"
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
MAX_LABEL = 63
SHORTHANDS = (
    "engine", "compress", "compress.prune", "compress.distill", "compress.quantize", "replicas",
    "cache", "cache.exact", "load", "record.keep", "fleet",
)  # fmt: skip
"""The keys that may hold a plain value in place of a mapping, outer ones first."""
_TIME = re.compile(r"[0-9.]+\s*(s|m|min|h|d)")
_SHORT_FOR = {
    "engine": "kind", "compress": "quantize", "compress.prune": "parameters",
    "compress.distill": "tokens", "compress.quantize": "scheme", "replicas": "count",
    "load": "streams", "record.keep": "requests", "fleet": "kind",
}  # fmt: skip


def is_time(text: str) -> bool:
    """Whether it is a time, not a number of tokens: `30m` are minutes, `2M` millions of tokens."""
    return _TIME.fullmatch(text.strip()) is not None


def expand_shorthand(path: str, value: Any) -> Any:
    """The mapping that `value` stands for at the key `path`; `value` where it is no shorthand."""
    if isinstance(value, bool):
        if path == "cache":
            return {"exact": value}
        if path == "cache.exact":
            return {"when": "deterministic" if value else "never"}
    elif path == "compress.distill" and isinstance(value, str) and is_time(value):
        return {"time": value}
    elif path in _SHORT_FOR and (
        isinstance(value, str | int)
        or (isinstance(value, float) and path in ("compress.prune", "record.keep"))
    ):
        return {_SHORT_FOR[path]: value}
    return value


class Section(BaseModel):
    """A mapping in the spec: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def _from_nothing(cls, value: Any) -> Any:
        """A key with nothing below it, all of it commented out, say."""
        return {} if value is None else value
