"""The golden checkpoints and the answers stored beside them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # noqa: F401  (safetensors reads bfloat16 only where this has registered the dtype)
import numpy as np
from safetensors.numpy import load_file

CHECKPOINTS = ("mistral-mxfp4-ct", "mistral-nvfp4-ct", "mixtral-nvfp4-modelopt", "mixtral-nvfp4-modelopt041")


def read_reference(directory: Path) -> dict[str, np.ndarray]:
    """Inputs, logits and jitter as made by the owning library (see tests/golden/README.md)."""
    return load_file(directory / "reference.safetensors")
