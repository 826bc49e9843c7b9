"""A gateway worker: its parts put together, and its process."""
