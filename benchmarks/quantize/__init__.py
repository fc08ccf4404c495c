"""How fast, and in how much memory, checkpoints are quantised."""
