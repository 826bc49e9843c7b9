"""Data sets: texts and questions to calibrate and evaluate models with, and built sets to train on.

fetch, sets, convert, facts   what comes as packages
overlap                       sequences of words that two texts share
noise                         the rows of an epoch, with seeded noise on what users say
built                         sets that `thrifty data build` made: their folders, and their rows
"""

from thrifty.data.built import BuiltSet, open_set
from thrifty.data.fetch import fetch_set
from thrifty.data.sets import LEARNED_FROM, SETS

__all__ = ["LEARNED_FROM", "SETS", "BuiltSet", "fetch_set", "open_set"]
