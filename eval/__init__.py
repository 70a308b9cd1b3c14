"""Measures generated data against reference data; what it computes on private data is not private."""
