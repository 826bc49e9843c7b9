"""Which replica a request goes to: one interface, one file a policy."""

from thrifty.gateway.routing.base import Candidate, Knowledge, RoutingPolicy
from thrifty.gateway.routing.registry import POLICIES, make_policy
from thrifty.gateway.routing.request import RoutedRequest, hash_affinity, hash_conversation
from thrifty.gateway.routing.router import UNKNOWN, Outstanding, Router

__all__ = [
    "POLICIES",
    "UNKNOWN",
    "Candidate",
    "Knowledge",
    "Outstanding",
    "RoutedRequest",
    "Router",
    "RoutingPolicy",
    "hash_affinity",
    "hash_conversation",
    "make_policy",
]
