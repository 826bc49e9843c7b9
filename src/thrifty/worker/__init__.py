"""A gateway worker: the assembly of its parts, and its process."""
