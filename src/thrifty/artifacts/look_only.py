"""A store that is only looked at: whoever would write is stopped, and what it would have needed is told.

Planning runs the very code that prepares models on it. So a plan says what that code finds, and
cannot disagree with it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

from thrifty.artifacts.store import Store
from thrifty.errors import ArtifactError
from thrifty.units import format_bytes


class NotMadeYet(ArtifactError):
    """A model would have to be made. `size_bytes` is about what it would take; None: not known."""

    def __init__(self, size_bytes: int | None) -> None:
        super().__init__("the model was not made yet")
        self.size_bytes = size_bytes


class LookOnlyStore(Store):
    """The store below one folder, without writing anything there."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._needed: int | None = None

    def require_space(self, needed_bytes: int, what: str) -> None:
        """As `Store.require_space`; what was asked for is told by the `NotMadeYet` that follows."""
        self._needed = needed_bytes
        there = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        if free < needed_bytes:
            raise ArtifactError(
                f"{what} needs {format_bytes(needed_bytes)}, and {there} has {format_bytes(free)} "
                "free; make room (thrifty models gc) or set THRIFTY_HOME to a larger disk"
            )

    def stage(self, key: str) -> NoReturn:
        """Raises `NotMadeYet`: whoever asks for a folder to build in has not found what it needs."""
        needed, self._needed = self._needed, None
        raise NotMadeYet(needed)
