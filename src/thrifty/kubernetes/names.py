"""Names that every platform takes, without collisions: a slug, and a checksum of the whole name."""

from __future__ import annotations

import hashlib
import re

MAX_NAME = 40
"""Platforms allow 63 characters and more, and add suffixes of their own: of pods, say."""
_HASH = 6


def make_slug(text: str) -> str:
    """Lower-case letters, digits and hyphens, beginning with a letter."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return slug if slug[:1].isalpha() else f"m-{slug}".strip("-")


def make_name(*parts: str) -> str:
    """The name of what belongs to `parts`, such as a deployment and a label. Two that differ only in
    what a slug leaves out still get different names.
    """
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_HASH]
    slug = make_slug("-".join(parts))[: MAX_NAME - _HASH - 1].rstrip("-")
    return f"{slug}-{digest}"
