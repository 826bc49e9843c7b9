"""Models side by side: their size, quality, speed and lineage."""
