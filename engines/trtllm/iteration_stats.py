"""The runtime's own figures, one set for each of its steps: KV blocks in use, and a sign of life."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

_logger = logging.getLogger(__name__)
# Reading waits for as long as this for a step to happen; then it is asked again.
_READ_TIMEOUT_SECONDS = 1.0
_PAUSE_SECONDS = 0.05


class IterationStats:
    """Reads `LLM.get_stats_async` for ever. Keys: reference section 5.3 and the runtime's KvCacheStats."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step
        self.num_steps = 0
        self.num_blocks_used = 0
        self.num_blocks_total = 0
        self.is_available = True

    async def read_forever(self, llm: Any) -> None:
        """Until it is cancelled, or the runtime turns out to have no figures."""
        while True:
            try:
                async for item in llm.get_stats_async(timeout=_READ_TIMEOUT_SECONDS):
                    self.take(item)
            except Exception as error:
                # Figures are no reason to stop serving; the watchdog then goes by tokens alone.
                self.is_available = False
                _logger.warning("TensorRT-LLM gives no figures about its steps: %s", error)
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    def take(self, item: Any) -> None:
        """Count one step; `item` is a mapping or, in some releases, its JSON."""
        stats = json.loads(item) if isinstance(item, (str, bytes)) else item
        self.num_steps += 1
        self._on_step()
        kv_cache = stats.get("kvCacheStats") if isinstance(stats, Mapping) else None
        if isinstance(kv_cache, Mapping):
            self.num_blocks_used = int(kv_cache.get("usedNumBlocks", 0))
            self.num_blocks_total = int(kv_cache.get("maxNumBlocks", 0))
