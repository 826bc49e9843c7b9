"""An engine without a model: fast, deterministic, with settable latency.

It is a feature, not a stand-in: it tells what a gateway, a client or a fleet does by itself.
"""
