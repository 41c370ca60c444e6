"""A job made ready and run: who teaches, who learns, from which rows, by which settings."""
