"""What the operator can set. The only reader of the environment; flags of the command line override it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engines.base import EngineOptions

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s?#]+")


class ServiceSettings(BaseSettings):
    """One process, one model. A field is read from `NYBBLE_<FIELD>` unless it is given to the constructor.

    Sizes accept "4GiB" and the like. `served_model_names` holds the names clients may use, the first of
    which is reported; empty means the checkpoint folder's name. Raises pydantic.ValidationError.
    """

    model_config = SettingsConfigDict(env_prefix="NYBBLE_", extra="ignore", frozen=True)

    checkpoint: Path
    engine: str = "auto"
    activations: Literal["checkpoint", "bf16"] = "checkpoint"
    numerics: Literal["fast", "reference"] = "fast"
    max_model_len: int | None = Field(default=None, ge=1)
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8"] = "auto"
    kv_cache_memory_bytes: ByteSize | None = None
    block_size: int = Field(default=16, ge=1)
    max_num_seqs: int = Field(default=64, ge=1)
    max_num_batched_tokens: int = Field(default=512, ge=1)
    prefix_caching: bool = True
    speculation: Literal["auto", "off"] = "auto"
    structured_output: bool = True
    max_step_stretch: float = Field(default=2.4, ge=0, allow_inf_nan=False)
    head_screen: bool = True
    num_threads: int = Field(default=0, ge=0)
    check_integrity: bool = False
    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)
    gpus_per_node: int | None = Field(default=None, ge=1)
    stall_timeout_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    echo_faults: str = ""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    generation_config: Literal["auto", "none"] = "auto"
    served_model_names: Annotated[tuple[str, ...], NoDecode] = ()
    api_key_file: Path | None = None
    insecure_no_auth: bool = False
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None

    health_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] | None = None
    health_host: str | None = None
    metrics_without_key: bool = False
    readiness_stall_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    liveness_timeout_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)

    max_queued_requests: int = Field(default=512, ge=0)
    max_queued_tokens: int | None = Field(default=None, ge=1)
    queue_timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    first_token_timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    request_timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_messages: int = Field(default=2048, ge=1, le=10_000)
    max_body_bytes: ByteSize = ByteSize(32 * 1024 * 1024)
    drain_delay_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    drain_timeout_seconds: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    heartbeat_seconds: float = Field(default=15.0, gt=0, allow_inf_nan=False)
    num_text_threads: int = Field(default=2, ge=1)

    vllm_metric_names: bool = False
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/]+.*$")
    trace_prompts: bool = False
    log_prompts: bool = False

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("served_model_names", "cors_origins", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return (
            tuple(filter(None, (name.strip() for name in value.split(","))))
            if isinstance(value, str)
            else value
        )

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; expected scheme://host or scheme://host:port, or *"
                )
        return origins

    @model_validator(mode="after")
    def _check_tls(self) -> ServiceSettings:
        for name in ("tls_key_file", "tls_client_ca_file"):
            if getattr(self, name) is not None and self.tls_cert_file is None:
                raise ValueError(f"{name} is set but tls_cert_file is not; TLS needs a certificate")
        return self

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names the model answers to; the first is its own."""
        return self.served_model_names or (self.checkpoint.resolve().name,)

    def engine_options(self) -> EngineOptions:
        """The part of the settings that engines see."""
        return EngineOptions(
            checkpoint=self.checkpoint,
            activations=self.activations,
            numerics=self.numerics,
            max_model_len=self.max_model_len,
            kv_cache_dtype=self.kv_cache_dtype,
            kv_cache_memory_bytes=None
            if self.kv_cache_memory_bytes is None
            else int(self.kv_cache_memory_bytes),
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefix_caching=self.prefix_caching,
            speculation=self.speculation,
            structured_output=self.structured_output,
            max_step_stretch=self.max_step_stretch,
            head_screen=self.head_screen,
            num_threads=self.num_threads,
            check_integrity=self.check_integrity,
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            gpus_per_node=self.gpus_per_node,
            stall_timeout_seconds=self.stall_timeout_seconds,
            echo_faults=self.echo_faults,
        )
