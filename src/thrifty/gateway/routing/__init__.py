"""Which replica a request goes to: one interface, one file a policy."""

from thrifty.gateway.routing.base import Candidate, RoutingPolicy
from thrifty.gateway.routing.registry import POLICIES, make_policy

__all__ = ["POLICIES", "Candidate", "RoutingPolicy", "make_policy"]
