"""Norm, rotation, activation, embedding, routing: kernels that work on one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels, reference

Float32Array = NDArray[np.float32]
WIDTHS = [1, 5, 16, 31, 64, 127, 300]
ROWS = [1, 3, 67]


def normals(rng: np.random.Generator, *shape: int) -> Float32Array:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", ROWS)
def test_rms_norm(isa: str, rng: np.random.Generator, num_rows: int, width: int) -> None:
    x, weight = normals(rng, num_rows, width), normals(rng, width)
    out = np.full_like(x, np.nan)
    kernels.rms_norm(x, weight, 1e-5, out)
    np.testing.assert_allclose(out, reference.rms_norm(x, weight, 1e-5), rtol=1e-6, atol=0)


def test_rms_norm_of_zeros_is_zero_and_may_work_in_place(isa: str, rng: np.random.Generator) -> None:
    x, weight = normals(rng, 3, 40), normals(rng, 40)
    x[1] = 0
    want = np.empty_like(x)
    kernels.rms_norm(x, weight, 1e-6, want)
    kernels.rms_norm(x, weight, 1e-6, x)
    np.testing.assert_array_equal(x, want)
    assert (x[1] == 0).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm_is_the_sum_then_the_norm(isa: str, rng: np.random.Generator, width: int) -> None:
    x, residual, weight = normals(rng, 5, width), normals(rng, 5, width), normals(rng, width)
    total = residual + x
    want, out = np.empty_like(x), np.empty_like(x)
    kernels.rms_norm(total, weight, 1e-5, want)
    kernels.add_rms_norm(x, residual, weight, 1e-5, out)
    np.testing.assert_array_equal(residual, total)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("head_dim", [2, 10, 32, 64, 80, 128])
def test_rope(isa: str, rng: np.random.Generator, head_dim: int) -> None:
    angles = rng.uniform(-3, 3, (50, head_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    q = normals(rng, 9, 3, head_dim)
    positions = rng.integers(0, 50, 9)
    want = reference.rope(q, positions, cos, sin)
    kernels.rope(q, positions, cos, sin)
    np.testing.assert_allclose(q, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("position", [-1, 50])
def test_a_position_outside_the_tables_is_refused(rng: np.random.Generator, position: int) -> None:
    q, table = normals(rng, 2, 1, 8), normals(rng, 50, 4)
    before = q.copy()
    with pytest.raises(ValueError, match=rf"positions\[1\] is {position}"):
        kernels.rope(q, np.array([0, position]), table, table)
    np.testing.assert_array_equal(q, before)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_rows", ROWS)
def test_silu_mul(isa: str, rng: np.random.Generator, num_rows: int, width: int) -> None:
    gate_up = 5 * normals(rng, num_rows, 2 * width)
    out = np.full((num_rows, width), np.nan, np.float32)
    kernels.silu_mul(gate_up, out)
    np.testing.assert_allclose(out, reference.silu_mul(gate_up), rtol=1e-6, atol=1e-30)


def test_silu_far_from_zero(isa: str) -> None:
    gate = np.array([-1e30, -200, -88, -87, -1e-30, 0, 1e-30, 87, 88, 1e30], np.float32)
    out = np.empty((1, 10), np.float32)
    kernels.silu_mul(np.concatenate([gate, np.ones(10, np.float32)])[None], out)
    np.testing.assert_allclose(
        out[0, 3:], reference.silu_mul(np.concatenate([gate, np.ones(10)])[None])[0, 3:], rtol=1e-6
    )
    assert (np.abs(out[0, 1:3]) < 1e-35).all()
    assert abs(out[0, 0]) < 1e-7


def test_not_a_number_stays_in_its_row(isa: str, rng: np.random.Generator) -> None:
    gate_up = normals(rng, 3, 40)
    gate_up[1, 7] = np.nan
    activated, normed = np.empty((3, 20), np.float32), np.empty_like(gate_up)
    kernels.silu_mul(gate_up, activated)
    kernels.rms_norm(gate_up, np.ones(40, np.float32), 1e-5, normed)
    np.testing.assert_array_equal(np.isnan(activated).nonzero(), ([1], [7]))
    np.testing.assert_array_equal(np.isnan(normed).any(axis=1), [False, True, False])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_embed(isa: str, rng: np.random.Generator, dtype: str) -> None:
    typed = normals(rng, 20, 37).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    table = typed.view(np.uint16) if dtype == "bfloat16" else typed
    ids = rng.integers(0, 20, 67).astype(np.int32)
    out = np.empty((67, 37), np.float32)
    kernels.embed(ids, table, out)
    np.testing.assert_array_equal(out, typed[ids].astype(np.float32))


@pytest.mark.parametrize("token_id", [-1, 20])
def test_a_token_id_outside_the_table_is_refused(token_id: int) -> None:
    with pytest.raises(ValueError, match=rf"token_ids\[1\] is {token_id}, expected 0 <= value < 20"):
        kernels.embed(
            np.array([3, token_id], np.int32), np.zeros((20, 4), np.float32), np.zeros((2, 4), np.float32)
        )


@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (4, 2), (8, 2), (8, 8), (60, 6)])
def test_route_top_k(isa: str, rng: np.random.Generator, num_experts: int, k: int) -> None:
    logits = 3 * normals(rng, 67, num_experts)
    ids, weights = kernels.route_top_k(logits, k)
    want_ids, want_weights = reference.route_top_k(logits, k)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(weights, want_weights, rtol=2e-6)


def test_route_top_k_breaks_ties_to_the_lower_expert(isa: str) -> None:
    ids, weights = kernels.route_top_k(np.array([[0, 2, 1, 2, 1, 2], [0] * 6], np.float32), 3)
    np.testing.assert_array_equal(ids, [[1, 3, 5], [0, 1, 2]])
    np.testing.assert_allclose(weights, np.full((2, 3), 1 / 3), rtol=1e-6)


def test_route_top_k_of_nan_still_names_distinct_experts(isa: str) -> None:
    ids, weights = kernels.route_top_k(np.array([[0, np.nan, 1, 2], [0, 1, 2, 3]], np.float32), 2)
    assert len(set(ids[0])) == 2
    assert ((ids >= 0) & (ids < 4)).all()
    assert np.isnan(weights[0]).all()
    np.testing.assert_array_equal(ids[1], [3, 2])


def test_gather_and_scatter_add(isa: str, rng: np.random.Generator) -> None:
    x, rows = normals(rng, 30, 37), rng.integers(0, 30, 12)
    gathered = np.empty((12, 37), np.float32)
    kernels.gather_rows(x, rows, gathered)
    np.testing.assert_array_equal(gathered, x[rows])
    weights, out = normals(rng, 12), normals(rng, 30, 37)
    want = reference.scatter_add_rows(gathered, rows, weights, out)
    kernels.scatter_add_rows(gathered, rows, weights, out)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("row", [-1, 3])
def test_gather_and_scatter_refuse_rows_outside(row: int) -> None:
    x, y, rows = np.zeros((3, 4), np.float32), np.ones((2, 4), np.float32), np.array([0, row])
    with pytest.raises(ValueError, match=rf"rows\[1\] is {row}"):
        kernels.gather_rows(x, rows, y)
    with pytest.raises(ValueError, match=rf"rows\[1\] is {row}"):
        kernels.scatter_add_rows(y, rows, np.ones(2, np.float32), x)
    assert not x.any()


def rows_of(
    function: Callable[[Float32Array, Float32Array], None], x: Float32Array, width: int
) -> Float32Array:
    out = np.empty((x.shape[0], width), np.float32)
    function(x, out)
    return out


@pytest.mark.parametrize("width", [32, 300])
def test_a_row_alone_has_the_bits_it_has_in_a_batch(isa: str, rng: np.random.Generator, width: int) -> None:
    x, weight = normals(rng, 67, width), normals(rng, width)
    checks: list[tuple[Callable[[Float32Array, Float32Array], None], int]] = [
        (lambda a, out: kernels.rms_norm(a, weight, 1e-5, out), width),
        (kernels.silu_mul, width // 2),
        (lambda a, out: out.__setitem__(slice(None), kernels.route_top_k(a, 2)[1]), 2),
    ]
    for function, out_width in checks:
        batch = rows_of(function, x, out_width)
        for rows in (slice(0, 1), slice(13, 20), slice(66, 67)):
            np.testing.assert_array_equal(rows_of(function, x[rows].copy(), out_width), batch[rows])
