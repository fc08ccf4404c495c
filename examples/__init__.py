"""Runnable examples; continuous integration runs them."""
