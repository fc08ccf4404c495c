"""Speculative decoding without a draft model: guesses from the sequence's own text, judged by the model."""
