"""The gateway application: the request path as a whole, and the gateway's own endpoints."""
