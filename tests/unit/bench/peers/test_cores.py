"""Which cores a comparison runs on."""

from __future__ import annotations

import pytest

from engines.bench.peers.cores import first_of_siblings, parse_cpu_list, physical_cores
from engines.errors import InvalidRequest


def test_the_kernels_notation() -> None:
    assert parse_cpu_list("0-2,8\n") == {0, 1, 2, 8}
    assert parse_cpu_list("5") == {5}


def test_one_of_each_pair_of_siblings() -> None:
    pairs = {0: frozenset({0, 4}), 4: frozenset({0, 4}), 1: frozenset({1, 5}), 6: frozenset({2, 6})}
    assert first_of_siblings([0, 1, 4, 6], pairs) == (0, 1, 6)


def test_more_threads_than_cores() -> None:
    with pytest.raises(InvalidRequest, match="4096 threads are to be compared"):
        physical_cores(4096)
    assert len(physical_cores(1)) == 1
