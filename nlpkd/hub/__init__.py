"""A student's folder, its card, and the push to the Hub."""
