"""What happened: metrics, and the request log."""
