"""A read-only view of the store, which stops code that would write and reports what it would need.

Planning runs the same code on it that prepares models, so that a plan cannot disagree with that
code.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

from thrifty.artifacts.store import Store
from thrifty.errors import ArtifactError
from thrifty.units import format_bytes


class NotMadeYet(ArtifactError):
    """A model would have to be made, of about `size_bytes`; None if unknown."""

    def __init__(self, size_bytes: int | None) -> None:
        super().__init__("the model has not been made yet")
        self.size_bytes = size_bytes


class LookOnlyStore(Store):
    """The store in one folder, without writing to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._needed: int | None = None

    def require_space(self, needed_bytes: int, what: str) -> None:
        """As `Store.require_space`; a following `NotMadeYet` reports the size."""
        self._needed = needed_bytes
        there = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        if free < needed_bytes:
            raise ArtifactError(
                f"{what} needs {format_bytes(needed_bytes)}, and {there} has {format_bytes(free)} "
                "free; free some space (thrifty models gc) or set THRIFTY_HOME to a larger disk"
            )

    def stage(self, key: str) -> NoReturn:
        """Raises `NotMadeYet`: a caller that needs a folder to build in has found no model."""
        needed, self._needed = self._needed, None
        raise NotMadeYet(needed)
