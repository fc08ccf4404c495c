"""API keys: what an entry holds, the file they come from, the ring in force, the reload."""
