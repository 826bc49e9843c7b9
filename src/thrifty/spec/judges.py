"""How a plan or a spec names a judge."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from thrifty.spec.section import Section

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
DEPLOYMENT = "deployment:"


class RemoteJudge(Section):
    """A model on a server that others run, which judges answers."""

    url: str = Field(min_length=1, description="The base URL of an OpenAI-compatible server.")
    model: str = Field(min_length=1, description="What that server calls the model.")
    key_env: str | None = Field(
        None,
        min_length=1,
        description="The environment variable of the controller that holds the key.",
    )


def check_judge(value: Any) -> Any:
    """The name of a judge, unchanged. Raises `ValueError` for a text that names none."""
    if isinstance(value, str) and not (
        FUNCTION.fullmatch(value) or (value.startswith(DEPLOYMENT) and value != DEPLOYMENT)
    ):
        raise ValueError(
            f"{value!r} is neither 'module:function' nor 'deployment:NAME'; a model elsewhere is "
            "a mapping of 'url' and 'model'"
        )
    return value
