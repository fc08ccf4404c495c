"""The facade: arguments refused by name, instruction sets, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.cpu import kernels
from engines.cpu.weights import DenseWeight, Fp4Shard, Fp4Weight
from engines.fp4 import mxfp4

F32 = np.float32


def weight() -> Fp4Weight:
    shard = Fp4Shard(np.zeros((20, 32), np.uint8), np.zeros((20, 2), np.uint8), mxfp4.scale_table())
    return Fp4Weight([shard], 32)


def zeros(*shape: int, dtype: Any = F32) -> NDArray[Any]:
    return np.zeros(shape, dtype)


def int8s(*shape: int) -> NDArray[np.int8]:
    return np.zeros(shape, np.int8)


def shard(packed: tuple[int, int], scales: tuple[int, int], table: int = 256) -> Fp4Shard:
    return Fp4Shard(np.zeros(packed, np.uint8), np.zeros(scales, np.uint8), zeros(table))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: kernels.fp4_linear_f32(zeros(2, 63), weight(), zeros(2, 20)),
            ValueError,
            r"x must have shape \[any, 64\]",
        ),
        (
            lambda: kernels.fp4_linear_f32(zeros(2, 64, dtype=np.float64), weight(), zeros(2, 20)),
            TypeError,
            "x must have dtype float32, got float64",
        ),
        (
            lambda: kernels.fp4_linear_f32([[1.0]], weight(), zeros(2, 20)),
            TypeError,
            "x must be a NumPy array, got list",
        ),
        (
            lambda: kernels.fp4_linear_f32(zeros(2, 128)[:, ::2], weight(), zeros(2, 20)),
            ValueError,
            "x must be C-contiguous",
        ),
        (
            lambda: kernels.fp4_linear_f32(zeros(2, 64), weight(), zeros(3, 20)),
            ValueError,
            r"out must have shape \[2, 20\]",
        ),
        (
            lambda: kernels.fp4_linear_w4a4(int8s(2, 64), zeros(2, 3), weight(), zeros(2, 20)),
            ValueError,
            r"scales must have shape \[2, 2\]",
        ),
        (
            lambda: kernels.quantize_mxfp4(zeros(1, 48), int8s(1, 48), zeros(1, 1)),
            ValueError,
            "multiple of the group size 32",
        ),
        (
            lambda: kernels.quantize_nvfp4(zeros(1, 40), 1.0, False, int8s(1, 40), zeros(1, 2)),
            ValueError,
            "multiple of the group size 16",
        ),
        (lambda: Fp4Weight([], 32), ValueError, "shards is empty"),
        (
            lambda: Fp4Weight([shard((2, 16), (2, 1))], 64),
            ValueError,
            "group_size must be 16 or 32, got 64",
        ),
        (lambda: Fp4Weight([shard((2, 20), (2, 1))], 32), ValueError, "packed holds 40 columns"),
        (
            lambda: Fp4Weight([shard((2, 16), (3, 1))], 32),
            ValueError,
            r"shards\[0\] scales must have shape \[2, 1\]",
        ),
        (
            lambda: Fp4Weight([shard((2, 16), (2, 1), 16)], 32),
            ValueError,
            "scale_table must have shape",
        ),
        (lambda: Fp4Weight([shard((0, 16), (0, 1))], 32), ValueError, "no rows"),
        (lambda: DenseWeight(zeros(4, 4, dtype=np.int32)), TypeError, "values must have dtype"),
        (lambda: DenseWeight(zeros(0, 4)), ValueError, "must not be empty"),
        (
            lambda: kernels.rope(zeros(1, 1, 5), zeros(1, dtype=np.int64), zeros(3, 2), zeros(3, 2)),
            ValueError,
            "even head_dim",
        ),
        (lambda: kernels.silu_mul(zeros(1, 5), zeros(1, 2)), ValueError, "even number of columns"),
        (
            lambda: kernels.route_top_k(zeros(1, 4), 5),
            ValueError,
            "k must be between 1 and the number of experts 4, got 5",
        ),
        (lambda: kernels.route_top_k(zeros(1, 4), 0), ValueError, "k must be between 1"),
        (lambda: kernels.set_num_threads(0), ValueError, "between 1 and 1024, got 0"),
        (lambda: kernels.set_isa("sse9"), ValueError, "'sse9' is not available here; choose one of: .*plain"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    call: Callable[[], None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_read_only_output_is_refused() -> None:
    out = zeros(2, 20)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out must be writeable"):
        kernels.fp4_linear_f32(zeros(2, 64), weight(), out)


def test_read_only_inputs_are_accepted() -> None:
    """Weights come from read-only memory maps."""
    packed, scales, values = (
        np.full((16, 16), 0x22, np.uint8), np.full((16, 1), 127, np.uint8), np.ones((2, 32), F32),
    )  # fmt: skip
    for array in (packed, scales, values):
        array.flags.writeable = False
    out = zeros(2, 16)
    kernels.fp4_linear_f32(values, Fp4Weight([(packed, scales, mxfp4.scale_table())], 32), out)
    assert (out == 32).all()
    kernels.dense_linear(values, DenseWeight(values), out := zeros(2, 2))
    assert (out == 32).all()


def test_empty_batches_do_nothing(isa: str) -> None:
    kernels.fp4_linear_f32(zeros(0, 64), weight(), zeros(0, 20))
    kernels.fp4_linear_w4a4(int8s(0, 64), zeros(0, 2), weight(), zeros(0, 20))
    kernels.rms_norm(zeros(0, 8), zeros(8), 1e-5, zeros(0, 8))
    kernels.embed(zeros(0, dtype=np.int32), zeros(3, 4), zeros(0, 4))
    ids, _ = kernels.route_top_k(zeros(0, 4), 2)
    assert ids.shape == (0, 2)


def test_set_isa_is_what_isa_name_says(isa: str) -> None:
    assert kernels.isa_name() == isa
    assert kernels.available_isas()[-1] == "plain"


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", kernels.available_isas())
def test_the_environment_chooses_the_instruction_set(name: str) -> None:
    code = "from engines.cpu import kernels; print(kernels.isa_name())"
    assert run_python(code, NYBBLE_CPU_ISA=name).stdout.strip() == name


def test_an_unknown_instruction_set_in_the_environment_is_an_error() -> None:
    result = run_python("from engines.cpu import kernels; kernels.isa_name()", NYBBLE_CPU_ISA="mmx")
    assert result.returncode == 1
    assert "ValueError: instruction set 'mmx' is not available here" in result.stderr


LARGE = 600  # columns and rows: enough work to leave the calling thread


def large_work(seed: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((33, LARGE * 32 // 30)).astype(F32)
    x = np.ascontiguousarray(x[:, :576])
    packed = rng.integers(0, 256, (LARGE, 288), np.uint8)
    scales = rng.integers(120, 130, (LARGE, 18), np.uint8)
    fp4 = Fp4Weight([(packed, scales, mxfp4.scale_table())], 32)
    codes, a_scales = int8s(33, 576), zeros(33, 18)
    kernels.quantize_mxfp4(x, codes, a_scales)
    outs = [zeros(33, LARGE) for _ in range(3)]
    kernels.fp4_linear_w4a4(codes, a_scales, fp4, outs[0])
    kernels.fp4_linear_f32(x, fp4, outs[1])
    kernels.dense_linear(x, DenseWeight(rng.standard_normal((LARGE, 576)).astype(F32)), outs[2])
    cache = rng.standard_normal((2, 40, 4, 16, 64)).astype(F32)
    q, attended = rng.standard_normal((200, 8, 64)).astype(F32), zeros(200, 8, 64)
    table = rng.permutation(40).astype(np.int32)[None]
    kernels.paged_attention(
        q,
        cache[0],
        cache[1],
        table,
        np.array([0, 200], np.int32),
        np.array([600], np.int32),
        0.1,
        0,
        attended,
    )
    normed = zeros(33, LARGE)
    kernels.rms_norm(outs[2], rng.standard_normal(LARGE).astype(F32), 1e-5, normed)
    return [codes, a_scales, *outs, attended, normed, fp4.decode()]


@pytest.mark.usefixtures("restore_threads")
def test_the_number_of_threads_changes_no_bit(isa: str) -> None:
    kernels.set_num_threads(1)
    want = large_work(1)
    for count in (2, 3):
        kernels.set_num_threads(count)
        assert kernels.num_threads() == count
        for got, expected in zip(large_work(1), want, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.usefixtures("restore_threads")
def test_two_python_threads_may_use_kernels_at_once() -> None:
    kernels.set_num_threads(3)
    want = [large_work(seed) for seed in (1, 2)]
    results: dict[int, list[list[NDArray[Any]]]] = {1: [], 2: []}
    threads = [
        threading.Thread(target=lambda seed=seed: results[seed].extend(large_work(seed) for _ in range(5)))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        assert len(results[seed]) == 5
        for got in results[seed]:
            for array, expected in zip(got, want[seed - 1], strict=True):
                np.testing.assert_array_equal(array, expected)


FORK = """
import os, sys, numpy as np
from engines.cpu import kernels
from engines.cpu.weights import DenseWeight
def work():
    x, out = np.ones((64, 512), np.float32), np.zeros((64, 512), np.float32)
    kernels.dense_linear(x, DenseWeight(x[:, :]), np.zeros((64, 64), np.float32))
    kernels.rms_norm(x, x[0], 1e-5, out)
    return out
kernels.set_num_threads(3)
work()
child = os.fork()
if child == 0:
    work()
    sys.exit(7)
_, status = os.waitpid(child, 0)
work()
print(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_works_and_both_end() -> None:
    result = run_python(FORK)
    assert (result.returncode, result.stdout.strip()) == (0, "7"), result.stderr


PIN = """
import os, threading, numpy as np
from engines.cpu import kernels
allowed = os.sched_getaffinity(0)
num_cores = kernels.num_threads()
def work():
    x, out = np.ones((64, 4096), np.float32), np.zeros((64, 4096), np.float32)
    kernels.rms_norm(x, x[0], 1e-5, out)
def places():
    return [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
def run():
    kernels.set_num_threads(num_cores + 1)
    kernels.pin_calling_thread()
    assert os.sched_getaffinity(0) == allowed  # more threads than cores: the system shares them out
    kernels.set_num_threads(num_cores)
    kernels.pin_calling_thread()
    own = os.sched_getaffinity(0)
    work()  # begins the workers, from a thread that is tied already
    pinned = [place for place in places() if len(place) == 1 < len(allowed)]
    assert set().union(own, *pinned) <= allowed
    print(len(own), len(pinned), len(set().union(*pinned)), num_cores)
thread = threading.Thread(target=run)
thread.start()
thread.join()
assert os.sched_getaffinity(0) == allowed
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a process of one core has nothing to pin")
def test_threads_that_have_all_cores_keep_one_each() -> None:
    result = run_python(PIN)
    assert result.returncode == 0, result.stderr
    own, num_pinned, num_places, num_cores = map(int, result.stdout.split())
    assert own == 1
    assert num_pinned == num_places == num_cores
