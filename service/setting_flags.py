"""The flags of `nybble serve` that change settings, and a command's signature made of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

from typer import Option

Command = TypeVar("Command", bound=Callable[..., None])


class SettingFlags:
    """In the order of --help, by the names in `ServiceSettings`; a flag leaves out the unit.

    Help ends with the default in brackets.
    """

    engine: Annotated[str | None, Option(help="auto, trtllm, cpu or echo. [auto]")]
    activations: Annotated[str | None, Option(help="checkpoint or bf16. [checkpoint]")]
    numerics: Annotated[str | None, Option(help="fast or reference. [fast]")]
    host: Annotated[str | None, Option(help="Address to listen on. [127.0.0.1]")]
    port: Annotated[int | None, Option(help="0 chooses a free one. [8000]")]
    served_model_names: Annotated[
        list[str] | None,
        Option("--served-model-name", help="A name clients may use; repeat it for aliases. [name of DIR]"),
    ]
    generation_config: Annotated[
        str | None, Option(help="auto: the checkpoint's sampling defaults; none: OpenAI's. [auto]")
    ]
    max_model_len: Annotated[int | None, Option(help="Context in tokens. [the model's]")]
    kv_cache_dtype: Annotated[
        str | None, Option(help="auto, bfloat16 or fp8: half the memory, rounded to E4M3. [auto]")
    ]
    kv_cache_memory_bytes: Annotated[
        str | None, Option("--kv-cache-memory", help="For example 4GiB. [chosen by the engine]")
    ]
    block_size: Annotated[int | None, Option(help="Tokens in a KV block. [16]")]
    max_num_seqs: Annotated[int | None, Option(help="Sequences computed together. [64]")]
    max_num_batched_tokens: Annotated[int | None, Option(help="Tokens in a step. [512]")]
    prefix_caching: Annotated[bool | None, Option(help="Reuse KV blocks of equal prefixes. [on]")]
    speculation: Annotated[str | None, Option(help="auto (guess tokens ahead where it pays) or off. [auto]")]
    structured_output: Annotated[
        bool | None, Option(help="Hold answers to schemas and grammars where asked. [on]")
    ]
    max_step_stretch: Annotated[
        float | None,
        Option(help="How much longer a step may get by a prompt beside running streams. [2.4]"),
    ]
    head_screen: Annotated[
        bool | None, Option(help="An int8 copy of the head, for faster greedy decoding (cpu). [on]")
    ]
    num_threads: Annotated[int | None, Option(help="0 means all physical cores. [0]")]
    tensor_parallel_size: Annotated[int | None, Option(help="GPUs to split each layer over (trtllm). [1]")]
    pipeline_parallel_size: Annotated[
        int | None, Option(help="Groups of layers, one after the other (trtllm). [1]")
    ]
    gpus_per_node: Annotated[
        int | None, Option(help="GPUs of each machine of several (trtllm). [those of this one]")
    ]
    stall_timeout_seconds: Annotated[
        float | None,
        Option("--stall-timeout", help="Seconds without progress until the engine is given up. [120]"),
    ]
    api_key_file: Annotated[
        Path | None, Option(help="API keys: one a line, TOML, or a folder of such. [no keys: open]")
    ]
    insecure_no_auth: Annotated[
        bool | None, Option("--insecure-no-auth", help="Serve other machines without keys. [off]")
    ]
    max_queued_requests: Annotated[
        int | None, Option(help="Sequences that may wait beyond --max-num-seqs. [512]")
    ]
    max_queued_tokens: Annotated[int | None, Option(help="Tokens of work that may wait. [unlimited]")]
    queue_timeout_seconds: Annotated[
        float | None, Option("--queue-timeout", help="Seconds a request may wait for its turn. [unlimited]")
    ]
    first_token_timeout_seconds: Annotated[
        float | None,
        Option("--first-token-timeout", help="Seconds until a request's first token. [unlimited]"),
    ]
    request_timeout_seconds: Annotated[
        float | None, Option("--request-timeout", help="Seconds a request may take in all. [unlimited]")
    ]
    max_messages: Annotated[int | None, Option(help="Messages in a conversation. [2048]")]
    max_body_bytes: Annotated[str | None, Option("--max-body-size", help="Largest request body. [32MiB]")]
    drain_delay_seconds: Annotated[
        float | None, Option("--drain-delay", help="Seconds between readiness off and refusing requests. [0]")
    ]
    drain_timeout_seconds: Annotated[
        float | None, Option("--drain-timeout", help="Seconds to finish after SIGTERM. [30]")
    ]
    health_port: Annotated[str | None, Option(help="0 chooses a free one, off: none of its own. [port + 1]")]
    health_host: Annotated[str | None, Option(help="Address for the health port. [--host]")]
    metrics_without_key: Annotated[bool | None, Option(help="Metrics on the health port need no key. [off]")]
    readiness_stall_seconds: Annotated[
        float | None,
        Option("--readiness-stall", help="Seconds without progress until readiness goes off. [60]"),
    ]
    liveness_timeout_seconds: Annotated[
        float | None, Option("--liveness-timeout", help="Seconds a blocked event loop counts as alive. [30]")
    ]
    tls_cert_file: Annotated[Path | None, Option(help="PEM; serves HTTPS with it. [none]")]
    tls_key_file: Annotated[Path | None, Option(help="PEM. [in the certificate's file]")]
    tls_client_ca_file: Annotated[
        Path | None, Option(help="PEM; clients need a certificate by one of these. [none]")
    ]
    cors_origins: Annotated[
        list[str] | None,
        Option("--cors-origin", help="Origin whose scripts may read answers; repeatable. [none]"),
    ]
    echo_faults: Annotated[
        str | None, Option(help="For drills with --engine echo; see docs/operations.md. [none]")
    ]
    vllm_metric_names: Annotated[
        bool | None, Option(help="Show the metrics under vLLM's names as well. [off]")
    ]
    otlp_endpoint: Annotated[
        str | None, Option(help="Collector for traces, as http://host:4318. [OTEL_*, else none]")
    ]
    trace_prompts: Annotated[bool | None, Option(help="Prompts and answers into traces. [off]")]
    log_prompts: Annotated[bool | None, Option(help="Prompts and answers into the log. [off]")]
    log_level: Annotated[str | None, Option(help="debug, info, warning or error. [info]")]
    log_format: Annotated[str | None, Option(help="text or json. [text]")]


def with_setting_flags(command: Command) -> Command:
    """Give a command these flags in place of its `**settings`: values by setting, None where left out."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in get_type_hints(SettingFlags, include_extras=True).items()
    ]
    command.__dict__["__signature__"] = inspect.Signature([*own, *flags])
    return command
