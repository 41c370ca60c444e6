"""What a teacher is asked, what that costs, and what its answers are good for."""
