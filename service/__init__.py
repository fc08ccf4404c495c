"""HTTP in, token ids across the seam, server-sent events out. Knows no weights and no tensors."""
