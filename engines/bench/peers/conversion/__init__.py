"""The model under measurement in each peer's own format, with the same weights as far as it can hold them."""
