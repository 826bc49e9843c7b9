"""Names of people and postal addresses in texts, found by a model in a process of its own."""
