"""Where the keys are with which recorded texts are encrypted. A key never stands in a spec."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from thrifty.spec.observe import Variable
from thrifty.spec.section import Section


class EncryptSpec(Section):
    """Keys for recorded texts: one of the two, or neither to write texts plain."""

    keys_file: str | None = Field(
        None,
        min_length=1,
        max_length=500,
        description="A file with one key a line (`thrifty encryption new-key --file FILE`). The last "
        "one writes, all of them read. A changed file is read within about five seconds.",
    )
    keys_env: Variable | None = Field(
        None,
        description="The environment variable that holds the keys, one a line or separated by commas.",
    )

    @model_validator(mode="after")
    def _check_one(self) -> EncryptSpec:
        if self.keys_file is not None and self.keys_env is not None:
            raise ValueError("needs 'keys_file' or 'keys_env', not both")
        return self

    @property
    def source(self) -> str:
        """The place as `db.sealed_text` writes it; empty: texts are not encrypted."""
        if self.keys_file is not None:
            return f"file:{Path(self.keys_file).expanduser().absolute()}"
        return f"env:{self.keys_env}" if self.keys_env is not None else ""
