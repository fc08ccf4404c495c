from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Shard = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]

class Fp4Weight:
    def __init__(
        self, shards: Sequence[_Shard], group_size: int, round_to_bfloat16: bool, activation_scale: float
    ) -> None: ...
    def decode(self) -> NDArray[np.float32]: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_columns(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def round_to_bfloat16(self) -> bool: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def shard_rows(self) -> list[int]: ...

def likeliest_tokens(logits: NDArray[np.float32], out: NDArray[np.int64]) -> None: ...
def num_rows_sharing_exponents(scales: NDArray[np.uint8]) -> int: ...
def logits_peak(logits: NDArray[np.float32]) -> tuple[int, float, bool]: ...
def token_weights(
    logits: NDArray[np.float32],
    maximum: float,
    inverse_temperature: float,
    scale: float,
    out: NDArray[np.float32],
) -> None: ...
def draw_token(
    logits: NDArray[np.float32],
    inverse_temperature: float,
    weight_scale: float,
    min_p_distance: float,
    top_k: int,
    top_p: float,
    uniform: float,
) -> int: ...
def draw_tokens(rows: list[NDArray[np.float32]], arguments: NDArray[np.float64]) -> list[int]: ...
def philox_uniform(seed: int, position: int) -> float: ...

class DenseWeight:
    def __init__(self, values: NDArray[Any]) -> None: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_columns(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...

class LinearLayer:
    def __init__(self) -> None: ...
    def add_fp4(
        self,
        weight: Fp4Weight,
        input_format: int,
        input_scale: float,
        modelopt: bool,
        bias: NDArray[np.float32] | None,
    ) -> None: ...
    def add_dense(self, weight: DenseWeight, bias: NDArray[np.float32] | None) -> None: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_columns(self) -> int: ...

class DecoderPass:
    def __init__(
        self,
        embedding: NDArray[Any],
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        final_norm: NDArray[np.float32],
        head: LinearLayer,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        sliding_window: int,
        rms_norm_eps: float,
    ) -> None: ...
    def add_layer(
        self,
        input_norm: NDArray[np.float32],
        qkv: LinearLayer,
        output: LinearLayer,
        post_attention_norm: NDArray[np.float32],
        router: LinearLayer | None,
        num_experts_per_token: int,
        experts: list[tuple[LinearLayer, LinearLayer]],
    ) -> None: ...
    def run(
        self,
        token_ids: NDArray[np.int32],
        positions: NDArray[np.int64],
        slots: NDArray[np.int64],
        block_tables: NDArray[np.int32],
        query_starts: NDArray[np.int32],
        context_lens: NDArray[np.int32],
        logits_rows: NDArray[np.int64],
        keys: list[NDArray[Any]],
        values: list[NDArray[Any]],
        logits: NDArray[np.float32],
        likeliest: NDArray[np.int64],
    ) -> None: ...

def isa_name() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def amx_status() -> str: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def num_physical_cores() -> int: ...
def pin_calling_thread() -> None: ...
def measure_operations(kind: int, num_threads: int, seconds: float, repetitions: int) -> float: ...
def measure_read_bandwidth(num_bytes: int, num_threads: int, repetitions: int) -> float: ...
def fp4_linear_w4a4(
    codes: NDArray[np.int8], scales: NDArray[np.float32], weight: Fp4Weight, out: NDArray[np.float32]
) -> None: ...
def fp4_linear_w4a16(x: NDArray[np.float32], weight: Fp4Weight, out: NDArray[np.float32]) -> None: ...
def fp4_linear_f32(x: NDArray[np.float32], weight: Fp4Weight, out: NDArray[np.float32]) -> None: ...
def dense_linear(x: NDArray[np.float32], weight: DenseWeight, out: NDArray[np.float32]) -> None: ...
def quantize_mxfp4(x: NDArray[np.float32], codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None: ...
def quantize_nvfp4(
    x: NDArray[np.float32],
    input_scale: float,
    modelopt: bool,
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
) -> None: ...
def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], epsilon: float, out: NDArray[np.float32]
) -> None: ...
def add_rms_norm(
    x: NDArray[np.float32],
    residual: NDArray[np.float32],
    weight: NDArray[np.float32],
    epsilon: float,
    out: NDArray[np.float32],
) -> None: ...
def rope(
    q: NDArray[np.float32],
    positions: NDArray[np.int64],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
) -> None: ...
def silu_mul(gate_up: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
def embed(token_ids: NDArray[np.int32], table: NDArray[Any], out: NDArray[np.float32]) -> None: ...
def kv_write(
    k: NDArray[np.float32],
    v: NDArray[np.float32],
    slots: NDArray[np.int64],
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
) -> None: ...
def paged_attention(
    q: NDArray[np.float32],
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    block_tables: NDArray[np.int32],
    query_starts: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    scale: float,
    sliding_window: int,
    out: NDArray[np.float32],
) -> None: ...
def route_top_k(
    logits: NDArray[np.float32], ids: NDArray[np.int32], weights: NDArray[np.float32]
) -> None: ...
def gather_rows(x: NDArray[np.float32], rows: NDArray[np.int64], out: NDArray[np.float32]) -> None: ...
def scatter_add_rows(
    y: NDArray[np.float32], rows: NDArray[np.int64], weights: NDArray[np.float32], out: NDArray[np.float32]
) -> None: ...
