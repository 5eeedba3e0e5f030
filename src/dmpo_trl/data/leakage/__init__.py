"""Leak reports: whether a dataset gives its answers away."""
