"""Where models come from: one file a kind of source.

A source brings files into a staging folder and says what it is, pinned. Fetching the same source
again continues what a killed fetch left behind.
"""

from thrifty.artifacts.sources.fetch import FoundModel, fetch_model, look_up_model

__all__ = ["FoundModel", "fetch_model", "look_up_model"]
