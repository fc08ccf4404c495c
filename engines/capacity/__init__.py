"""How fast and how large on paper: devices, the bytes and operations of a token, ceilings. Runs no model."""
