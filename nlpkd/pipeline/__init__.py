"""Whole jobs, from names to results: a file a command."""
