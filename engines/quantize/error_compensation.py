"""GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one by one, the rest absorbs their error.

Block scales are fixed before, so the file format does not change. Columns go in descending order of the
Hessian's diagonal (act-order over static groups), which costs nothing at run time since scales stay where
they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.fp4 import e2m1

Float32Array = NDArray[np.float32]

_BLOCK_COLUMNS = 128
_DAMPING = 0.05  # measured: 0.01 is a little better for W4A16, 0.05 for W4A4, 0.2 for neither
_MAX_DAMPING = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class InverseFactor:
    """`upper` float32 [K, K] with (H + damping)^-1 = upper^T upper in the column order `order` int64 [K]."""

    upper: Float32Array
    order: NDArray[np.int64]


def factorize(hessian: Float32Array, damping: float = _DAMPING) -> InverseFactor:
    """Prepare a Hessian X^T X, float32 [K, K], for any number of weights that read the same input.

    `damping` is a fraction of the mean diagonal; it is raised tenfold as often as the matrix is not positive
    definite in float32. Columns that were never active count as independent.
    """
    num_columns = hessian.shape[0]
    diagonal = np.diagonal(hessian).copy()
    mean = float(diagonal.mean(dtype=np.float64)) or 1.0
    order = np.argsort(-diagonal, kind="stable").astype(np.int64)
    # With the columns reversed, H = L L^T gives H = R R^T with R upper triangular, and then
    # H^-1 = (R^-1)^T R^-1: one Cholesky factorisation and one inversion, nothing squared.
    backwards = order[::-1]
    while True:
        damped = hessian[np.ix_(backwards, backwards)]
        damped[np.diag_indices(num_columns)] += np.float32(damping * mean)
        try:
            lower = np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            damping *= 10
            if damping > _MAX_DAMPING:
                raise
            continue
        break
    del damped
    upper = _invert_upper(np.ascontiguousarray(lower[::-1, ::-1]))
    return InverseFactor(upper, order)


def compensate(weight: Float32Array, multipliers: Float32Array, factor: InverseFactor) -> NDArray[np.uint8]:
    """Codes uint8 [N, K] for float32 weight [N, K] under block multipliers [N, K/group]."""
    num_rows, num_columns = weight.shape
    group_size = num_columns // multipliers.shape[1]
    remaining = np.ascontiguousarray(weight.T[factor.order])  # [K, N], one contiguous row per column
    scales = np.ascontiguousarray(multipliers.T)  # [K/group, N]
    codes = np.empty((num_columns, num_rows), np.uint8)
    upper = factor.upper
    for start in range(0, num_columns, _BLOCK_COLUMNS):
        end = min(start + _BLOCK_COLUMNS, num_columns)
        errors = np.empty((end - start, num_rows), np.float32)
        for index in range(start, end):
            column = int(factor.order[index])
            value = remaining[index]
            if index > start:
                value = value - upper[start:index, index] @ errors[: index - start]
            scale = scales[column // group_size]
            code = e2m1.encode(value / scale)
            codes[column] = code
            np.subtract(value, e2m1.decode(code) * scale, out=errors[index - start])
            errors[index - start] /= upper[index, index]
        if end < num_columns:
            remaining[end:] -= upper[start:end, end:].T @ errors
    return np.ascontiguousarray(codes.T)


def shifted_target(weight: Float32Array, shift: Float32Array, factor: InverseFactor) -> Float32Array:
    """The unrounded weight that fits X W^T best on the inputs Y: W + W (X - Y)^T Y H^-1, float32 [N, K].

    `shift` is (X - Y)^T Y; the damping of `factor` keeps columns that Y hardly excites as they are.
    """
    correction = (weight @ shift)[:, factor.order]
    correction = (correction @ factor.upper.T) @ factor.upper
    target: Float32Array = weight.copy()
    target[:, factor.order] += correction
    return target


def _invert_upper(matrix: Float32Array) -> Float32Array:
    """The inverse of an upper triangular matrix, by halves: all work is in matrix products."""
    size = matrix.shape[0]
    if size <= 256:
        inverse: Float32Array = np.triu(np.linalg.inv(matrix))
        return inverse
    half = size // 2
    first = _invert_upper(matrix[:half, :half])
    second = _invert_upper(matrix[half:, half:])
    result = np.zeros_like(matrix)
    result[:half, :half] = first
    result[half:, half:] = second
    result[:half, half:] = -(first @ (matrix[:half, half:] @ second))
    return result
