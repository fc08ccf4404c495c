"""The generated corpus of the demo models: pure Python, deterministic from a seed, all written for it."""
