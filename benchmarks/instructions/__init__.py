"""The host's instructions for a tiny call. Unlike times, these counts repeat."""
