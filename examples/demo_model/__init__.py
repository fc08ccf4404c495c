"""The small built-in demo checkpoint."""
