"""Training recipes for successors that fit what the old model left behind."""
