"""Metrics, latency, and the report."""
