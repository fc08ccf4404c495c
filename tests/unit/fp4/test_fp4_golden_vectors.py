"""Every golden vector made by compressed-tensors and modelopt, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint.safetensors_file import SafetensorsFile
from engines.fp4 import bfloat16, e4m3, modelopt_kernels, mxfp4, nvfp4

VECTORS = Path(__file__).parents[2] / "golden" / "vectors"
FILES = {
    name: SafetensorsFile(VECTORS / f"{name}.safetensors")
    for name in ("ct_mxfp4", "ct_nvfp4", "mo_mxfp4", "mo_nvfp4")
}


def cases(file: str) -> list[str]:
    return sorted(name.removesuffix(".input") for name in FILES[file].tensors if name.endswith(".input"))


class Case:
    """The vectors of one case; remembers which were compared."""

    def __init__(self, file: str, case: str) -> None:
        self._file, self._case = FILES[file], case
        self._left = {name for name in self._file.tensors if name.startswith(case + ".")}
        self.is_bfloat16 = case.endswith(".bf16")
        self.input = self.get("input")
        if self.is_bfloat16:
            self.input = bfloat16.decode(self.input)

    def get(self, key: str) -> np.ndarray:
        self._left.remove(f"{self._case}.{key}")
        return self._file.view(f"{self._case}.{key}")

    def same(self, actual: np.ndarray, key: str, *, drop_sign_of_zero: bool = False) -> None:
        """Compare bits. `drop_sign_of_zero`: modelopt's NVFP4 table decodes code 8 to +0, not -0."""
        expected = self.get(key)
        if drop_sign_of_zero:
            actual = actual + np.float32(0)
        if expected.dtype == np.uint16:
            actual = bfloat16.encode(actual)
        if expected.dtype == np.float32:
            actual, expected = actual.view(np.uint32), expected.view(np.uint32)
        np.testing.assert_array_equal(np.atleast_1d(actual), np.atleast_1d(expected), err_msg=key)

    def activation_kinds(self, scale_key: str) -> Iterator[tuple[str, float]]:
        for kind in ("act_self", "act_half", "act_x8"):
            if f"{self._case}.{kind}.{scale_key}" in self._left:
                yield kind, float(self.get(f"{kind}.{scale_key}").reshape(()))

    def assert_all_compared(self) -> None:
        assert not self._left


@pytest.mark.parametrize("name", cases("ct_mxfp4"))
def test_compressed_tensors_mxfp4(name: str) -> None:
    case = Case("ct_mxfp4", name)
    weight = mxfp4.quantize(case.input)
    case.same(weight.packed, "weight_packed")
    case.same(weight.scales, "weight_scale")
    case.same(mxfp4.dequantize(weight.packed, weight.scales), "weight_dequant")
    case.same(weight.dequantized(), "weight_fake_quant")
    activations = mxfp4.quantize_activations(case.input)
    case.same(activations.multipliers, "act_scale")
    case.same(activations.dequantized(), "act_dequant")
    case.assert_all_compared()


@pytest.mark.parametrize("name", cases("ct_nvfp4"))
def test_compressed_tensors_nvfp4(name: str) -> None:
    case = Case("ct_nvfp4", name)
    weight = nvfp4.quantize_weight_compressed_tensors(case.input, bfloat16_model=case.is_bfloat16)
    case.same(weight.packed, "weight_packed")
    case.same(weight.scales, "weight_scale")
    case.same(np.array([weight.global_scale], np.float32), "weight_global_scale")
    convention = nvfp4.Convention.COMPRESSED_TENSORS
    case.same(
        nvfp4.dequantize(weight.packed, weight.scales, weight.global_scale, convention), "weight_dequant"
    )
    case.same(weight.dequantized(), "weight_fake_quant")
    for kind, global_scale in case.activation_kinds("input_global_scale"):
        quantized = nvfp4.quantize_activations_compressed_tensors(
            case.input, global_scale, bfloat16_model=case.is_bfloat16
        )
        case.same(e4m3.decode(quantized.scales), f"{kind}.scale")
        case.same(quantized.dequantized(), f"{kind}.dequant")
    case.assert_all_compared()


@pytest.mark.parametrize("name", cases("mo_nvfp4"))
def test_modelopt_nvfp4(name: str) -> None:
    case = Case("mo_nvfp4", name)
    weight = nvfp4.quantize_weight_modelopt(case.input)
    case.same(weight.packed, "weight")
    case.same(weight.scales, "weight_scale")
    case.same(np.array(weight.global_scale, np.float32), "weight_scale_2")
    decoded = nvfp4.dequantize(weight.packed, weight.scales, weight.global_scale, nvfp4.Convention.MODELOPT)
    case.same(decoded, "dequant_f32", drop_sign_of_zero=True)
    case.same(decoded, "dequant_bf16", drop_sign_of_zero=True)
    for kind, global_scale in case.activation_kinds("input_scale"):
        quantized = nvfp4.quantize_activations_modelopt(case.input, global_scale)
        case.same(quantized.scales, f"{kind}.scale")
        case.same(quantized.dequantized(), f"{kind}.qtensor_dequant", drop_sign_of_zero=True)
        kernel = modelopt_kernels.fake_quantize_nvfp4(case.input, global_scale)
        case.same(kernel, f"{kind}.kernel_dequant", drop_sign_of_zero=True)
    case.assert_all_compared()


@pytest.mark.parametrize("name", cases("mo_mxfp4"))
def test_modelopt_mxfp4(name: str) -> None:
    case = Case("mo_mxfp4", name)
    weight = mxfp4.quantize_modelopt_export(case.input)
    case.same(weight.packed, "weight")
    case.same(weight.scales, "weight_scale")
    case.same(mxfp4.dequantize(weight.packed, weight.scales), "dequant")
    values, scales = modelopt_kernels.fake_quantize_mxfp4(case.input)
    case.same(scales, "act_scale")
    case.same(values, "act_dequant")
    case.assert_all_compared()
