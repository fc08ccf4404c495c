"""Token ids in, token ids out; and the FP4 checkpoints that engines read. Knows no text and no HTTP."""
