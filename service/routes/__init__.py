"""One file per family of endpoints: parse, call, shape the answer."""
