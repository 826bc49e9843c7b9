"""The path of a request as a whole, and what the gateway answers by itself."""
