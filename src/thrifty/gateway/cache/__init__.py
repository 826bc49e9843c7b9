"""The exact cache: whole answers to identical requests."""

from thrifty.gateway.cache.exact import Entry, ExactCache, Owner
from thrifty.gateway.cache.key import make_key
from thrifty.gateway.cache.single_flight import SingleFlight, SingleFlightGroup

__all__ = ["Entry", "ExactCache", "Owner", "SingleFlight", "SingleFlightGroup", "make_key"]
