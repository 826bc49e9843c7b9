"""Releases: a version's way to all of the traffic, decided by evidence, and back when it is worse."""
