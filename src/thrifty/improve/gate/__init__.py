"""The gate: whether a new version may serve in place of the one that serves now."""
