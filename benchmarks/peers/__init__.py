"""Nybble beside other systems on models of true sizes; the measuring itself is `engines.bench.peers`."""
