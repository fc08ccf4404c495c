"""The calibration tokens as the quantised model sees them, beside the same tokens in the unquantised one.

What a quantised layer reads differs from what the original read, because everything before it was rounded. A
weight that is to be compensated is therefore fitted to X W^T, the original's output, on the inputs Y that it
will get. Activations stay unrounded here: fitting to FP4 activations too was measured and lowers the loss
with FP4 activations a little and raises it without them a lot (docs/quantization.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.tensors import Fp4Tensors
from engines.cpu.linear import build_linear
from engines.quantize.hidden_states import HiddenStates
from engines.quantize.layer_forward import LayerForward, ReplacedModules
from engines.quantize.observation import observing
from engines.quantize.plan import Stage

Float32Array = NDArray[np.float32]


class PairedStatistics:
    """Sums over rows of the input as it was, X, and as the quantised layer gets it, Y; both [num_rows, K].

    `hessian` Y^T Y and `shift` (X - Y)^T Y, float32 [K, K]. `shift` is None where rows have no partner: the
    routers of the two models send different tokens to an expert.
    """

    def __init__(self, num_columns: int, *, is_paired: bool) -> None:
        self.num_rows = 0
        self.hessian = np.zeros((num_columns, num_columns), np.float32)
        self.shift = np.zeros((num_columns, num_columns), np.float32) if is_paired else None

    @property
    def mean_squares(self) -> Float32Array | None:
        """float32 [K], None when no row was seen (an expert that no token chose)."""
        diagonal = np.diagonal(self.hessian)
        if self.num_rows == 0 or not diagonal.any():
            return None
        return np.asarray(diagonal / np.float32(self.num_rows), np.float32)

    def observe(self, original: Float32Array | None, quantized: Float32Array) -> None:
        """Add rows."""
        self.num_rows += quantized.shape[0]
        self.hessian += quantized.T @ quantized
        if self.shift is not None:
            assert original is not None
            self.shift += (original - quantized).T @ quantized


class QuantizedStream:
    """Runs after `Calibration`, over the same batches; its hidden states lie in files of their own."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        forward: LayerForward,
        directory: Path,
        *,
        original: Callable[[int], HiddenStates],
        on_tokens: Callable[[int], None],
    ) -> None:
        """`original` opens what the unquantised layer of that number reads."""
        self._checkpoint = checkpoint
        self._forward = forward
        self._directory = directory
        self._original = original
        self._on_tokens = on_tokens

    def start(self) -> None:
        """Write what the first layer reads: the embeddings, which stay as they are."""
        hidden = self._hidden(0)
        self._forward.embed(hidden)
        hidden.sync()
        hidden.close()

    def observe(
        self, stage: Stage, groups: Sequence[str], replaced: Mapping[str, Fp4Tensors]
    ) -> dict[str, PairedStatistics]:
        """Statistics of `groups` in decoder layer `stage`, of which `replaced` are quantised already."""
        assert stage.layer is not None
        modules = stage.groups()
        statistics = {
            name: PairedStatistics(
                int(modules[name][0].source.data.shape[1]), is_paired=".experts." not in name
            )
            for name in groups
        }
        originals: dict[str, Float32Array] = {}
        originals_of = {
            modules[name][0].source.name: self._keeper(name, originals)
            for name in groups
            if statistics[name].shift is not None
        }
        observers = {
            modules[name][0].source.name: self._pairer(name, originals, statistics[name]) for name in groups
        }
        before_original, before = self._original(stage.layer), self._hidden(stage.layer)
        original_layer = self._forward.load(self._checkpoint, stage.layer, observing(originals_of))
        layer = self._forward.load(
            ReplacedModules(self._checkpoint, replaced),
            stage.layer,
            observing(observers),
        )
        try:
            for batch in self._forward.batches:
                originals.clear()
                if originals_of:
                    x = before_original.read(batch.begin, batch.end)
                    self._forward.run_batch(original_layer, batch, x)
                self._forward.run_batch(layer, batch, before.read(batch.begin, batch.end))
                self._on_tokens(batch.end - batch.begin)
        finally:
            before_original.close()
            before.close()
        return statistics

    def advance(self, stage: Stage, replaced: Mapping[str, Fp4Tensors]) -> None:
        """Run the quantised layer; what the next one reads is on the disk afterwards."""
        assert stage.layer is not None
        before, after = self._hidden(stage.layer), self._hidden(stage.layer + 1)
        layer = self._forward.load(
            ReplacedModules(self._checkpoint, replaced),
            stage.layer,
            build_linear,
        )
        try:
            self._forward.run(layer, before, after, self._on_tokens)
            after.sync()
        finally:
            before.close()
            after.close()

    def forget(self, layer: int) -> None:
        """Remove the input of `layer`."""
        self._path(layer).unlink(missing_ok=True)

    @staticmethod
    def _keeper(name: str, originals: dict[str, Float32Array]) -> Callable[[Float32Array], None]:
        def keep(x: Float32Array) -> None:
            originals[name] = x.copy()

        return keep

    @staticmethod
    def _pairer(
        name: str, originals: dict[str, Float32Array], statistics: PairedStatistics
    ) -> Callable[[Float32Array], None]:
        def pair(x: Float32Array) -> None:
            statistics.observe(originals.get(name), x)

        return pair

    def _hidden(self, layer: int) -> HiddenStates:
        return HiddenStates(self._path(layer), self._forward.num_tokens, self._checkpoint.config.hidden_size)

    def _path(self, layer: int) -> Path:
        return self._directory / f"hidden-quantized-{layer:05}"
