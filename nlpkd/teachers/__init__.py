"""Where a teacher's outputs come from, and whether to trust them."""
