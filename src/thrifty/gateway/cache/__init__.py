"""What is remembered between requests: whole answers to identical requests."""

from thrifty.gateway.cache.exact import Entry, ExactCache, Owner
from thrifty.gateway.cache.flights import Flight, Flights
from thrifty.gateway.cache.key import make_key

__all__ = ["Entry", "ExactCache", "Flight", "Flights", "Owner", "make_key"]
