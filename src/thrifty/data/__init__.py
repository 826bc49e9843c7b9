"""Data sets: texts and questions to calibrate and evaluate models with."""

from thrifty.data.fetch import fetch_set
from thrifty.data.sets import LEARNED_FROM, SETS

__all__ = ["LEARNED_FROM", "SETS", "fetch_set"]
