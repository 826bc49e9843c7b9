"""Forwarding to replicas: send, relay, retry, fall back to another deployment."""
