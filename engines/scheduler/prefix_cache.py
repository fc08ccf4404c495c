"""Which full blocks hold which token prefix, and in which order the idle ones may be overwritten.

A block's key is a 256-bit BLAKE2b digest of its parent's key and its own token ids, so it stands for the
whole prefix up to the block's end. No collision of such digests can be found, by chance or by choice of
prompts; that is why equal keys may be taken for equal contents.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from hashlib import blake2b

KEY_BYTES = 32
_ROOT_KEY = bytes(KEY_BYTES)


def block_key(parent_key: bytes | None, token_ids: SequenceOf[int]) -> bytes:
    """Key of the full block holding `token_ids`; `parent_key` is that of the block before it."""
    digest = blake2b(parent_key if parent_key is not None else _ROOT_KEY, digest_size=KEY_BYTES)
    digest.update(array("q", token_ids).tobytes())
    return digest.digest()


def extend_block_keys(
    keys: list[bytes], token_ids: SequenceOf[int], block_size: int, num_blocks: int
) -> None:
    """Append to `keys` until it covers the first `num_blocks` full blocks of `token_ids`."""
    for index in range(len(keys), num_blocks):
        tokens = token_ids[index * block_size : (index + 1) * block_size]
        keys.append(block_key(keys[-1] if keys else None, tokens))


class PrefixCache:
    """A two-way map of content keys and blocks, with the idle blocks (held by no sequence) in LRU order."""

    def __init__(self) -> None:
        self._block_by_key: dict[bytes, int] = {}
        self._key_by_block: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Cached blocks that no sequence holds: reusable as they are, or free to be evicted."""
        return len(self._idle)

    def match(self, keys: SequenceOf[bytes]) -> list[int]:
        """The blocks of the longest run of `keys` from the first on that is cached."""
        blocks: list[int] = []
        for key in keys:
            block_id = self._block_by_key.get(key)
            if block_id is None:
                break
            blocks.append(block_id)
        return blocks

    def insert(self, key: bytes, block_id: int) -> None:
        """Make `block_id`, now full, findable. When another block has the same content, that one stays."""
        if key not in self._block_by_key and block_id not in self._key_by_block:
            self._block_by_key[key] = block_id
            self._key_by_block[block_id] = key

    def key_of(self, block_id: int) -> bytes | None:
        """The key under which `block_id` is cached, or None."""
        return self._key_by_block.get(block_id)

    def is_idle(self, block_id: int) -> bool:
        """Whether `block_id` is cached and held by no sequence."""
        return block_id in self._idle

    def retain(self, block_id: int) -> None:
        """An idle block is held by a sequence again."""
        del self._idle[block_id]

    def retire(self, block_id: int) -> None:
        """A cached block is no longer held; it becomes the last to be evicted."""
        self._idle[block_id] = None

    def evict(self) -> int:
        """Forget the idle block unused for longest and return it; KeyError when there is none."""
        block_id, _ = self._idle.popitem(last=False)
        del self._block_by_key[self._key_by_block.pop(block_id)]
        return block_id

    def check_integrity(self) -> None:
        """Raise AssertionError when the two maps disagree or an idle block is not cached."""
        assert len(self._block_by_key) == len(self._key_by_block), (
            f"{len(self._block_by_key)} keys map to blocks but {len(self._key_by_block)} blocks map to keys"
        )
        for block_id, key in self._key_by_block.items():
            assert self._block_by_key.get(key) == block_id, (
                f"block {block_id} has key {key.hex()}, which maps to block {self._block_by_key.get(key)}"
            )
        for block_id in self._idle:
            assert block_id in self._key_by_block, f"block {block_id} is idle but has no key"
