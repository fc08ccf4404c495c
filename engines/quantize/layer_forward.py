"""Runs calibration tokens through one decoder layer at a time, on the CPU engine's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu import kernels
from engines.cpu.kv_cache import KvCache, KvCacheShape
from engines.cpu.linear import LinearOptions
from engines.cpu.models.attention import RopeTables
from engines.cpu.models.layer import DecoderLayer
from engines.cpu.models.loader import LinearBuilder, ModuleSource, load_layer
from engines.cpu.rope import rope_tables
from engines.cpu.workspace import Workspace
from engines.quantize.hidden_states import (
    BLOCK_SIZE,
    CalibrationBatch,
    HiddenStates,
    make_batches,
    num_cache_blocks,
)

Float32Array = NDArray[np.float32]


class ReplacedModules:
    """A checkpoint some of whose linear layers are replaced by quantised ones."""

    def __init__(self, checkpoint: Checkpoint, replaced: Mapping[str, Fp4Tensors]) -> None:
        """`replaced`: by the name of the module in the source."""
        self._checkpoint = checkpoint
        self._replaced = replaced

    @property
    def config(self) -> ModelConfig:
        return self._checkpoint.config

    def linear(self, name: str) -> Fp4Tensors | DenseTensors:
        return self._replacement(self._checkpoint.linear(name))

    def expert(self, layer: int, expert: int, part: str) -> Fp4Tensors | DenseTensors:
        return self._replacement(self._checkpoint.expert(layer, expert, part))

    def router(self, layer: int) -> DenseTensors:
        return self._checkpoint.router(layer)

    def dense(self, name: str) -> DenseTensors:
        return self._checkpoint.dense(name)

    def _replacement(self, module: Fp4Tensors | DenseTensors) -> Fp4Tensors | DenseTensors:
        return self._replaced.get(module.name, module)


class LayerForward:
    """The calibration batches and what any layer needs to run them: rope tables, a KV cache of one layer."""

    def __init__(self, checkpoint: Checkpoint, samples: Sequence[Sequence[int]]) -> None:
        config = checkpoint.config
        self._checkpoint = checkpoint
        self.batches = make_batches(samples)
        self.num_tokens = self.batches[-1].end
        longest = max(map(len, samples))
        self._rope = RopeTables(*rope_tables(config.rope, config.head_dim, longest))
        shape = KvCacheShape(1, config.num_kv_heads, config.head_dim, BLOCK_SIZE, element_bytes=4)
        self._cache = KvCache(shape, num_cache_blocks(self.batches))
        self._workspace = Workspace()

    def embed(self, hidden: HiddenStates) -> None:
        """Write the embeddings of all tokens to `hidden`."""
        embedding = self._checkpoint.dense("model.embed_tokens")
        for batch in self.batches:
            rows = np.empty((batch.end - batch.begin, embedding.shape[1]), np.float32)
            kernels.embed(batch.forward.token_ids, embedding.data, rows)
            hidden.write(batch.begin, rows)

    def load(self, modules: ModuleSource, layer: int, build: LinearBuilder) -> DecoderLayer:
        """One layer ready to run, from the source or with quantised modules; activations stay unrounded."""
        options = LinearOptions(quantize_activations=False, reference_numerics=False)
        return load_layer(modules, layer, self._rope, options, build, cache_layer=0)

    def run_batch(self, layer: DecoderLayer, batch: CalibrationBatch, x: Float32Array) -> None:
        """x, float32 [num_rows, hidden_size], becomes the layer's output."""
        scratch, eps = self._workspace, self._checkpoint.config.rms_norm_eps
        normed = scratch.array("normed", x.shape)
        branch = scratch.array("branch", x.shape)
        kernels.rms_norm(x, layer.input_norm, eps, normed)
        layer.attention(normed, batch.forward, self._cache, branch, scratch)
        kernels.add_rms_norm(branch, x, layer.post_attention_norm, eps, normed)
        layer.feed_forward(normed, branch, scratch)
        x += branch

    def run(
        self,
        layer: DecoderLayer,
        before: HiddenStates,
        after: HiddenStates | None,
        on_batch: Callable[[int], None],
    ) -> None:
        """All batches through `layer`; `on_batch` is told the number of tokens done."""
        for batch in self.batches:
            x = before.read(batch.begin, batch.end)
            self.run_batch(layer, batch, x)
            if after is not None:
                after.write(batch.begin, x)
            on_batch(batch.end - batch.begin)
