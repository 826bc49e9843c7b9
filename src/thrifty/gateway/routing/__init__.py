"""Which replica a request goes to: one file for each policy."""

from thrifty.gateway.routing.registry import POLICIES, make_policy

__all__ = ["POLICIES", "make_policy"]
