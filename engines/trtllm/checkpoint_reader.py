"""Reads a written TensorRT-LLM checkpoint back and proves that it is the source, rank by rank, bit by bit.

Knows the layout's names and shapes on its own account (it shares no code with the writer but the swizzle), so
that a mistake has to be made twice to pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.json_file import read_json_object
from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.errors import MalformedCheckpoint
from engines.fp4 import e4m3
from engines.trtllm.swizzle import unswizzle


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What was compared; every weight was found bit-equal."""

    num_tensors: int
    num_fp4_modules: int
    num_bytes: int


def read_back(checkpoint: Checkpoint, directory: Path) -> ReadBack:
    """Compare the checkpoint in `directory` with its source. Raises MalformedCheckpoint."""
    config = read_json_object(directory / "config.json")
    num_ranks = config["mapping"]["world_size"]
    files = [SafetensorsFile(directory / f"rank{rank}.safetensors") for rank in range(num_ranks)]
    reader = _Reader(checkpoint, files, config["quantization"]["kv_cache_quant_algo"] == "FP8")
    num_fp4 = reader.check()
    for file in files:
        unknown = sorted(set(file.tensors) - reader.seen)
        if unknown:
            raise MalformedCheckpoint(f"{file.path}: has tensors that nothing asks for: {unknown[:5]}")
    return ReadBack(
        num_tensors=sum(len(file.tensors) for file in files),
        num_fp4_modules=num_fp4,
        num_bytes=sum(info.num_bytes for file in files for info in file.tensors.values()),
    )


class _Reader:
    def __init__(self, checkpoint: Checkpoint, files: Sequence[SafetensorsFile], fp8_kv_cache: bool) -> None:
        self._checkpoint = checkpoint
        self._files = files
        self._fp8_kv_cache = fp8_kv_cache
        self.seen: set[str] = set()

    def check(self) -> int:
        """Every tensor of the model; the number of FP4 source modules compared."""
        config = self._checkpoint.config
        source, num_fp4 = self._checkpoint, 0
        self._whole("transformer.vocab_embedding.weight", source.dense("model.embed_tokens").data, "BF16")
        self._whole("transformer.ln_f.weight", source.dense("model.norm").data, "BF16")
        head = source.dense("lm_head").data
        joined = self._joined("lm_head.weight", "BF16", 0)
        self._same("lm_head.weight", joined[: len(head)], head)
        self._same("lm_head.weight", joined[len(head) :], np.zeros_like(joined[len(head) :]))
        for layer in range(config.num_layers):
            num_fp4 += self._layer(layer)
            for file in self._files:
                file.release_pages()
            source.tensors.release_pages()
        return num_fp4

    def _layer(self, layer: int) -> int:
        source, config = self._checkpoint, self._checkpoint.config
        hub, ours = f"model.layers.{layer}", f"transformer.layers.{layer}"
        for name, theirs in (("input_layernorm",) * 2, ("post_layernorm", "post_attention_layernorm")):
            self._whole(f"{ours}.{name}.weight", source.dense(f"{hub}.{theirs}").data, "BF16")
        if self._fp8_kv_cache:
            self._kv_cache(f"{ours}.attention")
        attention = [source.linear(f"{hub}.self_attn.{name}_proj") for name in "qkvo"]
        num_fp4 = self._linear(f"{ours}.attention.qkv", attention[:3], 0)
        num_fp4 += self._linear(f"{ours}.attention.dense", attention[3:], 1)
        if not config.num_experts:
            for name, theirs, axis in (
                ("fc", "gate_proj", 0),
                ("gate", "up_proj", 0),
                ("proj", "down_proj", 1),
            ):
                num_fp4 += self._linear(f"{ours}.mlp.{name}", [source.linear(f"{hub}.mlp.{theirs}")], axis)
            return num_fp4
        self._whole(f"{ours}.mlp.router.weight", source.router(layer).as_float32(), "F32")
        for name, parts, axis in (("fc", ("up", "gate"), 0), ("proj", ("down",), 1)):
            experts = [
                [source.expert(layer, expert, part) for part in parts] for expert in range(config.num_experts)
            ]
            num_fp4 += self._experts(f"{ours}.mlp.{name}", experts, axis)
        return num_fp4

    def _linear(self, name: str, modules: list[Fp4Tensors | DenseTensors], axis: int) -> int:
        fp4 = [module for module in modules if isinstance(module, Fp4Tensors)]
        if not fp4:
            dense = [module.data for module in modules if isinstance(module, DenseTensors)]
            self._parts(f"{name}.weight", self._ranks(f"{name}.weight", "BF16"), dense, axis)
            return 0
        weights = self._ranks(f"{name}.weight", "U8")
        self._parts(f"{name}.weight", weights, [module.packed for module in fp4], axis)
        scales = self._ranks(f"{name}.weights_block_scaling_factor", "F8_E4M3")
        swizzled = self._ranks(f"{name}.weights_block_scaling_factor_interleaved", "F8_E4M3")
        for plain, tiled in zip(scales, swizzled, strict=True):
            self._same(f"{name} (swizzled)", unswizzle(tiled, *plain.shape), plain)
        activation, global_scale = self._factors(name, fp4, moe=False)
        assert global_scale is not None
        self._scales(name, scales, fp4, axis, [global_scale] * len(fp4))
        alpha = np.array([activation * global_scale], np.float32)
        self._whole(f"{name}.alpha", alpha, "F32")
        return len(fp4)

    def _experts(self, name: str, experts: list[list[Fp4Tensors | DenseTensors]], axis: int) -> int:
        flat = [module for expert in experts for module in expert]
        fp4 = [module for module in flat if isinstance(module, Fp4Tensors)]
        dtype = "U8" if fp4 else "BF16"
        weights = self._ranks(f"{name}.weight", dtype)
        if not fp4:
            for index, expert in enumerate(experts):
                data = [module.data for module in expert if isinstance(module, DenseTensors)]
                self._parts(f"{name}.weight", [rank[index] for rank in weights], data, axis)
            return 0
        scales = self._ranks(f"{name}.weights_block_scaling_factor", "F8_E4M3")
        swizzled = self._ranks(f"{name}.weights_block_scaling_factor_interleaved", "F8_E4M3")
        activation, _ = self._factors(name, fp4, moe=True)
        alphas = self._ranks(f"{name}.alpha", "F32")
        for index, expert in enumerate(experts):
            members = [module for module in expert if isinstance(module, Fp4Tensors)]
            part = f"{name}, expert {index}"
            self._parts(part, [rank[index] for rank in weights], [module.packed for module in members], axis)
            plain = [rank[index] for rank in scales]
            for one, tiled in zip(plain, (rank[index] for rank in swizzled), strict=True):
                self._same(f"{part} (swizzled)", unswizzle(tiled, *one.shape), one)
            # The file has no weight factor for experts: alpha must belong to a member's own.
            alpha = {float(rank[index]) for rank in alphas}
            fitting = [
                scale
                for scale in (np.float32(module.global_scale) for module in members)
                if alpha == {float(np.float32(scale * activation))}
            ]
            if not fitting:
                raise MalformedCheckpoint(f"{part}: alpha {alpha} is not input scale times weight scale")
            self._scales(part, plain, members, axis, [fitting[0]] * len(members))
        return len(fp4)

    def _factors(
        self, name: str, modules: list[Fp4Tensors], *, moe: bool
    ) -> tuple[np.float32, np.float32 | None]:
        activation = max(
            np.float32(module.input_scale) for module in modules if module.input_scale is not None
        )
        self._whole(f"{name}.activation_global_scaling_factor", np.array([activation]), "F32")
        if moe:
            return activation, None
        stored = self._ranks(f"{name}.weights_global_scaling_factor", "F32")
        if len({rank.tobytes() for rank in stored}) != 1 or stored[0].shape != (1,):
            raise MalformedCheckpoint(f"{name}: the ranks' weights_global_scaling_factor differ")
        return activation, np.float32(stored[0][0])

    def _scales(
        self,
        name: str,
        ranks: list[NDArray[np.uint8]],
        modules: list[Fp4Tensors],
        axis: int,
        stored: list[np.float32],
    ) -> None:
        """Block scales: equal bytes under an equal global scale, else equal float32 products."""
        for part, module, scale in zip(self._split(ranks, modules, axis), modules, stored, strict=True):
            if scale == np.float32(module.global_scale):
                self._same(f"{name}: scales of {module.name}", part, module.scales)
                continue
            before = e4m3.VALUES[module.scales] * np.float32(module.global_scale)
            self._same(f"{name}: scales of {module.name}", e4m3.VALUES[part] * scale, before)

    def _split(
        self, ranks: list[NDArray[np.uint8]], modules: list[Fp4Tensors], axis: int
    ) -> Iterator[NDArray[Any]]:
        """Each source's rows (or columns), gathered from all ranks."""
        start = 0
        for module in modules:
            share = module.num_rows // len(ranks) if axis == 0 else module.num_rows
            yield np.concatenate([rank[start : start + share] for rank in ranks], axis=axis)
            start += share

    def _parts(
        self, name: str, ranks: list[NDArray[Any]], sources: Sequence[NDArray[Any]], axis: int
    ) -> None:
        start = 0
        for source in sources:
            share = source.shape[0] // len(ranks) if axis == 0 else source.shape[0]
            part = np.concatenate([rank[start : start + share] for rank in ranks], axis=axis)
            self._same(name, part, source)
            start += share
        if any(rank.shape[0] != start for rank in ranks):
            raise MalformedCheckpoint(f"{name}: has rows that belong to no source module")

    def _kv_cache(self, name: str) -> None:
        for scale, reciprocal in zip(
            self._ranks(f"{name}.kv_cache_scaling_factor", "F32"),
            self._ranks(f"{name}.kv_cache_rcp_scaling_factor", "F32"),
            strict=True,
        ):
            self._same(f"{name}.kv_cache_rcp_scaling_factor", reciprocal, np.float32(1) / scale)

    def _joined(self, name: str, dtype: str, axis: int) -> NDArray[Any]:
        return np.concatenate(self._ranks(name, dtype), axis=axis)

    def _whole(self, name: str, expected: NDArray[Any], dtype: str) -> None:
        for found in self._ranks(name, dtype):
            self._same(name, found, expected)

    def _ranks(self, name: str, dtype: str) -> list[NDArray[Any]]:
        self.seen.add(name)
        found = []
        for file in self._files:
            info = file.tensors.get(name)
            if info is None or info.dtype != dtype:
                got = "absent" if info is None else info.dtype
                raise MalformedCheckpoint(f"{file.path}: tensor {name!r} is {got}; expected {dtype}")
            found.append(file.view(name))
        return found

    @staticmethod
    def _same(name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
        """Equal shapes and bits."""
        if found.shape != expected.shape or found.dtype.itemsize != expected.dtype.itemsize:
            raise MalformedCheckpoint(f"{name}: has the shape {found.shape}; expected {expected.shape}")
        bits = f"u{found.dtype.itemsize}"
        if math.prod(found.shape) and not np.array_equal(
            np.ascontiguousarray(found).view(bits), np.ascontiguousarray(expected).view(bits)
        ):
            raise MalformedCheckpoint(f"{name}: differs from the source")
