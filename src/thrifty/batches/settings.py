"""What batches may cost, as a gateway worker is told."""

from __future__ import annotations

import msgspec

from thrifty.batches.governor import GovernorSettings


class BatchSettings(msgspec.Struct, frozen=True):
    """Bounds and places. Times in seconds."""

    folder: str = ""
    """Where files are kept; empty: there are no files and no batches."""
    max_file_bytes: int = 512_000_000
    max_lines: int = 50_000
    max_active: int = 100
    """Batches of one tenant that may be under way."""
    keep_s: float = 30 * 86400.0
    """Files are removed after this long, where their owner did not say otherwise."""
    governor: GovernorSettings = GovernorSettings()
