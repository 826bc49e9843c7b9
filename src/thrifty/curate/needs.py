"""The libraries of the extra `data`, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from thrifty.errors import DataError


def need(module: str) -> Any:
    """A module of the extra `data`. Raises `DataError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"this recipe needs {module.partition('.')[0]} ({error}): pip install 'thrifty[data]'"
        ) from None
