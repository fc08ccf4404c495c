"""Files of weights: safetensors, model configuration, which tensor is in which FP4 layout, inspection."""
