"""Decoder-only transformers over packed FP4 weights: Mistral, Llama and Mixtral share one shape."""
