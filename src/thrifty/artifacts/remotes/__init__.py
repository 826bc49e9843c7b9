"""Remotes: stores elsewhere that models are pushed to and pulled from.

A folder, S3, Google Cloud Storage, Azure Blob Storage or an OCI registry. All keep a model in the
same way: its files as blobs named by their SHA-256, then a manifest, written last and only if none
is there. A model is therefore there whole or not at all, and a version never changes.
"""

from thrifty.artifacts.remotes.open import open_remote
from thrifty.artifacts.remotes.pull import Pulled, look_up_remote, pull
from thrifty.artifacts.remotes.push import Pushed, push
from thrifty.artifacts.remotes.reference import is_reference, parse_reference, parse_root

__all__ = [
    "Pulled",
    "Pushed",
    "is_reference",
    "look_up_remote",
    "open_remote",
    "parse_reference",
    "parse_root",
    "pull",
    "push",
]
