"""What every room may use, and what knows no teacher and no student."""
