"""Observability: metrics and the request log."""
