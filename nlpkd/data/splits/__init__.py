"""Texts that two splits share: told by hashes, kept on one side of a split, counted, and remembered beside a model."""
