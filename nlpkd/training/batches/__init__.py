"""Which rows make a batch of the training, and who loads it."""
