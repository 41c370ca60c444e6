"""Saved classifiers as functions of texts."""
