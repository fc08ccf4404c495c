"""Grammars over a model's vocabulary: checked in a process apart, compiled once, one mask for each token.

The library that parses and matches is llguidance. Grammars come from strangers, and it may take long over a
hostile one, or overflow its stack: what is not known to compile never gets into the server's own process.
"""
