"""Rotary position embedding tables (RoFormer, arXiv 2104.09864), with Llama 3's frequency scaling."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.rope_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> NDArray[np.float32]:
    """Angular frequency of each pair of channels, float32 [head_dim / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: NDArray[np.float32] = np.float32(1.0) / np.power(np.float32(rope.theta), exponents)
    if rope.kind == "linear":
        frequencies /= np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3_frequencies(frequencies, rope)
    return frequencies


def rope_tables(
    rope: RopeConfig, head_dim: int, num_positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each float32 [num_positions, head_dim / 2]."""
    positions = np.arange(num_positions, dtype=np.float32)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim)[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _llama3_frequencies(frequencies: NDArray[np.float32], rope: RopeConfig) -> NDArray[np.float32]:
    """Divide slow rotations by `factor`, keep fast ones, and blend between (Llama 3.1's `rope_scaling`)."""
    original_length = rope.original_max_position_embeddings
    wavelengths = 2.0 * math.pi / frequencies
    longest_kept = original_length / rope.high_freq_factor
    shortest_scaled = original_length / rope.low_freq_factor
    blend = (original_length / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1.0 - blend) * frequencies / rope.factor + blend * frequencies
    scaled = np.where(wavelengths > shortest_scaled, frequencies / rope.factor, blended)
    return np.where(wavelengths < longest_kept, frequencies, scaled).astype(np.float32)
