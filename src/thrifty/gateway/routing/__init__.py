"""Routing policies, one module each: which replica a request goes to."""

from thrifty.gateway.routing.registry import POLICIES, make_policy

__all__ = ["POLICIES", "make_policy"]
