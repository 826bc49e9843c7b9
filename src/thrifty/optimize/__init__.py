"""The search for the cheapest form of a model on this machine that stays within a bound."""
