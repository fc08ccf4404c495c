from __future__ import annotations

import pytest

from engines.errors import NoFreeBlocks
from engines.scheduler.block_pool import BlockPool
from engines.scheduler.prefix_cache import block_key, extend_block_keys


def keys_of(*token_ids: int, block_size: int = 2) -> list[bytes]:
    keys: list[bytes] = []
    extend_block_keys(keys, token_ids, block_size, len(token_ids) // block_size)
    return keys


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(4, 2, prefix_caching=True)


def test_each_block_is_handed_out_once_and_then_none(pool: BlockPool) -> None:
    blocks = [pool.allocate() for _ in range(4)]
    assert sorted(blocks) == [0, 1, 2, 3]
    assert (pool.num_free, pool.num_used) == (0, 4)
    with pytest.raises(NoFreeBlocks, match="all 4 KV blocks"):
        pool.allocate()
    pool.release(blocks)
    assert (pool.num_free, pool.num_used) == (4, 0)


def test_a_shared_block_is_free_only_when_nobody_holds_it(pool: BlockPool) -> None:
    block = pool.allocate()
    pool.share([block])
    assert pool.ref_count(block) == 2
    pool.release([block])
    assert pool.num_used == 1
    pool.release([block])
    assert pool.num_used == 0


def test_releasing_what_nobody_holds_is_refused(pool: BlockPool) -> None:
    with pytest.raises(AssertionError, match="block 3 is released but nobody holds it"):
        pool.release([3])


def test_freed_content_is_found_again_and_can_be_held_again(pool: BlockPool) -> None:
    keys = keys_of(1, 2, 3, 4)
    table = [pool.allocate(), pool.allocate()]
    for block, key in zip(table, keys, strict=True):
        pool.register(block, key)
    pool.release(table)
    assert (pool.num_used, pool.num_cached_idle) == (0, 2)
    assert pool.match(keys_of(1, 2, 3, 4, 5, 6)) == table
    assert pool.match(keys_of(1, 2, 9, 9)) == table[:1]
    assert pool.match(keys_of(3, 4)) == []  # the same tokens, but not after 1, 2
    pool.share(table)
    assert (pool.num_used, pool.num_cached_idle) == (2, 0)
    pool.check_integrity([table])


def test_blank_blocks_go_first_then_the_tail_of_the_prefix_released_first(pool: BlockPool) -> None:
    keys = keys_of(1, 2, 3, 4)
    old = [pool.allocate(), pool.allocate()]
    for block, key in zip(old, keys, strict=True):
        pool.register(block, key)
    young = [pool.allocate()]
    pool.register(young[0], keys_of(7, 8)[0])
    pool.release(old)
    pool.release(young)
    assert pool.allocate() not in (*old, *young)
    assert pool.allocate() == old[1]
    assert pool.match(keys) == old[:1]
    assert pool.allocate() == old[0]
    assert pool.match(keys) == []
    assert pool.allocate() == young[0]


def test_a_reused_block_becomes_the_last_to_be_evicted() -> None:
    pool = BlockPool(2, 2, prefix_caching=True)
    blocks = [pool.allocate(), pool.allocate()]
    for block, token in zip(blocks, (1, 2), strict=True):
        pool.register(block, keys_of(token, token)[0])
        pool.release([block])
    pool.share(blocks[:1])
    pool.release(blocks[:1])
    assert pool.allocate() == blocks[1]


def test_of_two_blocks_with_the_same_content_the_first_stays_findable(pool: BlockPool) -> None:
    first, second = pool.allocate(), pool.allocate()
    key = keys_of(1, 2)[0]
    pool.register(first, key)
    pool.register(second, key)
    assert pool.match([key]) == [first]
    pool.release([second])
    pool.check_integrity([[first]])
    assert pool.num_cached_idle == 0


def test_without_prefix_caching_nothing_is_found() -> None:
    pool = BlockPool(2, 2, prefix_caching=False)
    block = pool.allocate()
    key = keys_of(1, 2)[0]
    pool.register(block, key)
    assert pool.match([key]) == []
    pool.release([block])
    assert pool.num_cached_idle == 0


def test_keys_depend_on_every_token_their_order_and_everything_before() -> None:
    keys = {
        block_key(None, [1, 2]),
        block_key(None, [2, 1]),
        block_key(None, [1, 3]),
        block_key(block_key(None, [1, 2]), [1, 2]),
        block_key(block_key(None, [2, 1]), [1, 2]),
    }
    assert len(keys) == 5
    assert block_key(None, [1, 2]) == block_key(None, [1, 2])


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0)])
def test_an_empty_pool_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(num_blocks, block_size, prefix_caching=True)


def test_integrity_names_a_lost_reference(pool: BlockPool) -> None:
    block = pool.allocate()
    with pytest.raises(AssertionError, match=f"block {block} has reference count 1, but 0"):
        pool.check_integrity([])


def test_integrity_names_a_block_listed_twice(pool: BlockPool) -> None:
    block = pool.allocate()
    with pytest.raises(AssertionError, match="occurs twice in one block table"):
        pool.check_integrity([[block, block]])


def test_integrity_names_a_block_both_held_and_blank(pool: BlockPool) -> None:
    block = pool.allocate()
    pool._blank.append(block)
    with pytest.raises(AssertionError, match=f"block {block} must be one of held, blank, idle"):
        pool.check_integrity([[block]])
