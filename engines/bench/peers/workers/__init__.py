"""One system under measurement in a process of its own: standard library and that system's packages only."""
