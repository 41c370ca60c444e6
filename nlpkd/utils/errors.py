"""Which errors a user can mend."""

from __future__ import annotations

FORESEEN = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, MemoryError)
"""Kinds of errors whose message says it all, so that nobody needs a traceback."""
