"""Sources of models, one module for each kind.

A source copies files into a staging folder and returns its pinned name. Fetching the same source
again resumes what a killed fetch left.
"""

from thrifty.artifacts.sources.fetch import FoundModel, fetch_model, look_up_model

__all__ = ["FoundModel", "fetch_model", "look_up_model"]
