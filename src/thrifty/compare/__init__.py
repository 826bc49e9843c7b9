"""Models side by side: how large, how good, how fast, made how."""
