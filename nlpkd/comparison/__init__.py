"""Students of one teacher side by side: what each keeps, and what it costs."""
