"""What makes figures sound: their intervals, names that tell candidates apart, parts that belong together."""
