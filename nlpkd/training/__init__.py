"""The trainer and what its loop needs."""
