"""Data sets: texts and questions to calibrate and evaluate models with."""

from thrifty.data.fetch import fetch_set
from thrifty.data.sets import SETS

__all__ = ["SETS", "fetch_set"]
