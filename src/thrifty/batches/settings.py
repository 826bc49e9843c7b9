"""Settings of batches for a gateway worker."""

from __future__ import annotations

import msgspec

from thrifty.batches.governor import GovernorSettings


class BatchSettings(msgspec.Struct, frozen=True):
    """Limits and paths. Times are in seconds."""

    folder: str = ""
    """Where files are stored; if empty, there are no files and no batches."""
    max_file_bytes: int = 512_000_000
    max_lines: int = 50_000
    max_active: int = 100
    """Active batches that one tenant may have."""
    keep_s: float = 30 * 86400.0
    """Files are removed after this long, unless their owner chose another time."""
    governor: GovernorSettings = GovernorSettings()
