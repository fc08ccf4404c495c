"""Checkpoints of true sizes with random weights, for measuring speed and memory."""
