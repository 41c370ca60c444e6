"""What makes a training faster and leaves its result as it is."""
