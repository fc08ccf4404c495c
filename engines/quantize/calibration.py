"""Calibration as the run goes from layer to layer: what every linear layer's input looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.fp4 import bfloat16
from engines.quantize.hidden_states import HiddenStates
from engines.quantize.layer_forward import LayerForward
from engines.quantize.observation import InputStatistics, observing
from engines.quantize.plan import Stage

Float32Array = NDArray[np.float32]

_UNSEEN_EXPERT_AMAX = np.float32(0.5)  # modelopt's, for a layer of which no expert saw a token


class Calibration:
    """The samples on their way through the unquantised model, one layer at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        samples: Sequence[Sequence[int]],
        directory: Path,
        on_tokens: Callable[[int], None],
    ) -> None:
        """`directory` holds the hidden states; `on_tokens` hears of every batch done."""
        self.forward = LayerForward(checkpoint, samples)
        self._checkpoint = checkpoint
        self._directory = directory
        self._on_tokens = on_tokens
        self.num_samples = len(samples)
        self.num_tokens = self.forward.num_tokens

    def start(self) -> None:
        """Write what the first layer reads."""
        hidden = self.hidden(0)
        self.forward.embed(hidden)
        hidden.sync()
        hidden.close()

    def observe(self, stage: Stage) -> dict[str, InputStatistics]:
        """Run decoder layer `stage`; statistics of every group of quantised modules in it.

        Afterwards the input of the next layer is on the disk. Raises CalibrationError.
        """
        assert stage.layer is not None
        groups = stage.groups()
        statistics = {
            name: InputStatistics(name, int(modules[0].source.data.shape[1]))
            for name, modules in groups.items()
        }
        observers = {
            module.source.name: statistics[name].observe
            for name, modules in groups.items()
            for module in modules
        }
        before, after = self.hidden(stage.layer), self.hidden(stage.layer + 1)
        try:
            layer = self.forward.load(self._checkpoint, stage.layer, observing(observers))
            self.forward.run(layer, before, after, self._on_tokens)
            after.sync()
        finally:
            before.close()
            after.close()
        return statistics

    def forget(self, layer: int) -> None:
        """Remove the input of `layer`, once the journal says that the layer is finished."""
        self._path(layer).unlink(missing_ok=True)

    def hidden(self, layer: int) -> HiddenStates:
        """What the unquantised `layer` reads; to be closed."""
        return HiddenStates(self._path(layer), self.num_tokens, self._checkpoint.config.hidden_size)

    def _path(self, layer: int) -> Path:
        return self._directory / f"hidden-{layer:05}"


def input_amax(statistics: dict[str, InputStatistics], *, bfloat16_model: bool) -> dict[str, np.float32]:
    """The calibrated maximum of each group's input, in the model's dtype as the libraries observe it.

    All experts of a layer share one (modelopt 0.47 exports it so, and servers take the maximum anyway), which
    also gives one to experts that no token chose.
    """
    shared: dict[str, np.float32] = {}
    for name, seen in statistics.items():
        key = _sharing_key(name)
        shared[key] = max(shared.get(key, np.float32(0)), seen.amax)
    result = {}
    for name in statistics:
        amax = shared[_sharing_key(name)] or _UNSEEN_EXPERT_AMAX
        result[name] = bfloat16.round_trip(np.array([amax], np.float32))[0] if bfloat16_model else amax
    return result


def _sharing_key(group: str) -> str:
    """ "...experts.3.gate_up" -> "...experts.gate_up"; other groups stand for themselves."""
    layer, found, rest = group.partition(".experts.")
    return f"{layer}.experts.{rest.partition('.')[2]}" if found else group
