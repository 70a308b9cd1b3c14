"""Measures generated data; what it computes on private data is not private."""
