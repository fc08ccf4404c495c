"""An FP4 checkpoint on disk, opened, checked and ready to be taken apart by an engine."""

from __future__ import annotations

from pathlib import Path

from engines.checkpoint.architecture import expert_names, module_specs, router_names
from engines.checkpoint.model_config import ModelConfig, read_model_config
from engines.checkpoint.module_reader import ModuleReader
from engines.checkpoint.quantization import Layout, Quantization, read_quantization
from engines.checkpoint.shards import TensorDirectory
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.errors import MalformedCheckpoint


class Checkpoint:
    """All modules of one model. Weights are views into the mapped files; nothing large is in memory.

    `open` has checked every module's presence, dtypes, shapes and scales, so the accessors raise nothing but
    KeyError, for a name the architecture does not have.
    """

    def __init__(
        self,
        directory: Path,
        config: ModelConfig,
        quantization: Quantization | None,
        tensors: TensorDirectory,
    ) -> None:
        """Use `open`. Reads and checks all modules."""
        self.directory = directory
        self.config = config
        self.quantization = quantization
        self.tensors = tensors
        self._modules: dict[str, Fp4Tensors | DenseTensors] = {}
        reader = ModuleReader(tensors, quantization)
        for spec in module_specs(config):
            module = reader.read(spec)
            for name in spec.names:
                self._modules[name] = module

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Open and check a Hugging Face checkpoint directory.

        Raises MalformedCheckpoint for files that are missing or wrong, UnsupportedCheckpoint for sound ones
        that no engine here reads.
        """
        if not directory.is_dir():
            raise MalformedCheckpoint(f"{directory}: is no directory; expected that of a checkpoint")
        config, raw = read_model_config(directory)
        quantization = read_quantization(directory, raw)
        return cls(directory, config, quantization, TensorDirectory(directory))

    @property
    def layout(self) -> Layout:
        """How the FP4 weights are stored; PLAIN when there are none."""
        return Layout.PLAIN if self.quantization is None else self.quantization.layout

    def linear(self, name: str) -> Fp4Tensors | DenseTensors:
        """A linear layer by its module name, e.g. "model.layers.0.self_attn.q_proj" or "lm_head"."""
        if name == "lm_head" and self.config.tie_word_embeddings:
            return self._modules["model.embed_tokens"]
        return self._modules[name]

    def expert(self, layer: int, expert: int, part: str) -> Fp4Tensors | DenseTensors:
        """One projection of one expert; `part` is "gate", "up" or "down", however the files spell it."""
        return self._modules[expert_names(layer, expert, part)[0]]

    def router(self, layer: int) -> DenseTensors:
        """The router of a mixture-of-experts layer, [num_experts, hidden_size]."""
        return self.dense(router_names(layer)[0])

    def dense(self, name: str) -> DenseTensors:
        """A norm, "model.embed_tokens" or an unquantised "lm_head" (the embeddings when they are tied)."""
        module = self.linear(name)
        if not isinstance(module, DenseTensors):
            raise KeyError(f"{name} is stored in FP4; use `linear`")
        return module

    def modules(self) -> tuple[Fp4Tensors | DenseTensors, ...]:
        """Every module once, in the order of the model."""
        return tuple({id(module): module for module in self._modules.values()}.values())
