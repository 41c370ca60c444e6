"""Labelled text: from any source to padded batches."""
