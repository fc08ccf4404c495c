"""How good a checkpoint is: perplexity of one model, and how far two models are apart, on a given text."""
