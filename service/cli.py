"""The `nybble` command: serving, one answer without a server, and the engines' offline commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from engines.cli import register as register_engine_commands
from engines.errors import EngineError
from service.chat_template import ChatTemplateError
from service.cli_generate import register as register_generate
from service.configuration import CONFIG_VARIABLE, ConfigurationError, load_configuration
from service.exposure import ExposedWithoutKeys
from service.keys.command import register as register_keys
from service.keys.file import KeyFileError
from service.start import StartFailure, run_server
from service.tokenizer import TokenizerError
from service.tracing import TracingUnavailable
from service.version import package_version

app = typer.Typer(
    name="nybble",
    help="Serve language models stored in 4-bit floating point (MXFP4, NVFP4).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Errors whose message is all the user needs.
_EXPECTED = (
    EngineError,
    TokenizerError,
    ChatTemplateError,
    KeyFileError,
    ExposedWithoutKeys,
    StartFailure,
    TracingUnavailable,
    OSError,
)


def main() -> None:
    """Entry point. Every expected failure is one line on standard error and a status other than 0."""
    try:
        status = app(standalone_mode=False)
    except ValidationError as error:
        _fail("; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()))
    except ConfigurationError as error:
        _fail(str(error), error.exit_status)
    except _EXPECTED as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # Typer's own usage errors; the module of their class differs between its versions.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        _fail(format_message(), getattr(error, "exit_code", 1))
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int = 1) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(package_version())
        raise typer.Exit


@app.callback()
def nybble(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve language models stored in 4-bit floating point (MXFP4, NVFP4)."""


@app.command()
def serve(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of a Hugging Face checkpoint.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(envvar=CONFIG_VARIABLE, help="Settings as TOML; see docs/operations.md.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings as TOML, and end.")
    ] = False,
    engine: Annotated[str | None, typer.Option(help="auto, trtllm, cpu or echo. [auto]")] = None,
    activations: Annotated[str | None, typer.Option(help="checkpoint or bf16. [checkpoint]")] = None,
    numerics: Annotated[str | None, typer.Option(help="fast or reference. [fast]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0 chooses a free one. [8000]")] = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="A name clients may use; repeat it for aliases. [name of DIR]")
    ] = None,
    generation_config: Annotated[
        str | None, typer.Option(help="auto: the checkpoint's sampling defaults; none: OpenAI's. [auto]")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Context in tokens. [the model's]")] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="auto, bfloat16 or fp8: half the memory, rounded to E4M3. [auto]")
    ] = None,
    kv_cache_memory: Annotated[
        str | None, typer.Option(help="For example 4GiB. [chosen by the engine]")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens in a KV block. [16]")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Sequences computed together. [64]")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="Tokens in a step. [512]")] = None,
    prefix_caching: Annotated[
        bool | None, typer.Option(help="Reuse KV blocks of equal prefixes. [on]")
    ] = None,
    speculation: Annotated[
        str | None, typer.Option(help="auto (guess tokens ahead where it pays) or off. [auto]")
    ] = None,
    structured_output: Annotated[
        bool | None, typer.Option(help="Hold answers to schemas and grammars where asked. [on]")
    ] = None,
    max_step_stretch: Annotated[
        float | None,
        typer.Option(help="How much longer a step may get by a prompt beside running streams. [2.5]"),
    ] = None,
    num_threads: Annotated[int | None, typer.Option(help="0 means all physical cores. [0]")] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="GPUs to split each layer over (trtllm). [1]")
    ] = None,
    pipeline_parallel_size: Annotated[
        int | None, typer.Option(help="Groups of layers, one after the other (trtllm). [1]")
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of each machine of several (trtllm). [those of this one]")
    ] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(help="Seconds without progress until the engine is given up. [120]")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="API keys: one a line, TOML, or a folder of such. [no keys: open]")
    ] = None,
    insecure_no_auth: Annotated[
        bool | None, typer.Option("--insecure-no-auth", help="Serve other machines without keys. [off]")
    ] = None,
    max_queued_requests: Annotated[
        int | None, typer.Option(help="Sequences that may wait beyond --max-num-seqs. [512]")
    ] = None,
    max_queued_tokens: Annotated[
        int | None, typer.Option(help="Tokens of work that may wait. [unlimited]")
    ] = None,
    queue_timeout: Annotated[
        float | None, typer.Option(help="Seconds a request may wait for its turn. [unlimited]")
    ] = None,
    first_token_timeout: Annotated[
        float | None, typer.Option(help="Seconds until a request's first token. [unlimited]")
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(help="Seconds a request may take in all. [unlimited]")
    ] = None,
    max_messages: Annotated[int | None, typer.Option(help="Messages in a conversation. [2048]")] = None,
    max_body_size: Annotated[str | None, typer.Option(help="Largest request body. [32MiB]")] = None,
    drain_delay: Annotated[
        float | None, typer.Option(help="Seconds between readiness off and refusing requests. [0]")
    ] = None,
    drain_timeout: Annotated[float | None, typer.Option(help="Seconds to finish after SIGTERM. [30]")] = None,
    health_port: Annotated[
        str | None, typer.Option(help="0 chooses a free one, off: none of its own. [port + 1]")
    ] = None,
    health_host: Annotated[str | None, typer.Option(help="Address for the health port. [--host]")] = None,
    metrics_without_key: Annotated[
        bool | None, typer.Option(help="Metrics on the health port need no key. [off]")
    ] = None,
    readiness_stall: Annotated[
        float | None, typer.Option(help="Seconds without progress until readiness goes off. [60]")
    ] = None,
    liveness_timeout: Annotated[
        float | None, typer.Option(help="Seconds a blocked event loop counts as alive. [30]")
    ] = None,
    tls_cert_file: Annotated[Path | None, typer.Option(help="PEM; serves HTTPS with it. [none]")] = None,
    tls_key_file: Annotated[Path | None, typer.Option(help="PEM. [in the certificate's file]")] = None,
    tls_client_ca_file: Annotated[
        Path | None, typer.Option(help="PEM; clients need a certificate by one of these. [none]")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose scripts may read answers; repeatable. [none]")
    ] = None,
    echo_faults: Annotated[
        str | None, typer.Option(help="For drills with --engine echo; see docs/operations.md. [none]")
    ] = None,
    vllm_metric_names: Annotated[
        bool | None, typer.Option(help="Show the metrics under vLLM's names as well. [off]")
    ] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Collector for traces, as http://host:4318. [OTEL_*, else none]")
    ] = None,
    trace_prompts: Annotated[bool | None, typer.Option(help="Prompts and answers into traces. [off]")] = None,
    log_prompts: Annotated[bool | None, typer.Option(help="Prompts and answers into the log. [off]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json. [text]")] = None,
) -> None:
    """Serve a checkpoint over an OpenAI-compatible API.

    Settings can also come from the environment (NYBBLE_MAX_MODEL_LEN and so on) or from a file (--config). An
    option wins over the environment, that over the file. --print-config shows all and where they are from.
    """
    given: dict[str, Any] = {
        "checkpoint": checkpoint,
        "engine": engine,
        "activations": activations,
        "numerics": numerics,
        "host": host,
        "port": port,
        "served_model_names": tuple(served_model_name or ()) or None,
        "generation_config": generation_config,
        "max_model_len": max_model_len,
        "kv_cache_dtype": kv_cache_dtype,
        "kv_cache_memory_bytes": kv_cache_memory,
        "block_size": block_size,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "prefix_caching": prefix_caching,
        "speculation": speculation,
        "structured_output": structured_output,
        "max_step_stretch": max_step_stretch,
        "num_threads": num_threads,
        "tensor_parallel_size": tensor_parallel_size,
        "pipeline_parallel_size": pipeline_parallel_size,
        "gpus_per_node": gpus_per_node,
        "stall_timeout_seconds": stall_timeout,
        "api_key_file": api_key_file,
        "insecure_no_auth": insecure_no_auth,
        "max_queued_requests": max_queued_requests,
        "max_queued_tokens": max_queued_tokens,
        "queue_timeout_seconds": queue_timeout,
        "first_token_timeout_seconds": first_token_timeout,
        "request_timeout_seconds": request_timeout,
        "max_messages": max_messages,
        "max_body_bytes": max_body_size,
        "drain_delay_seconds": drain_delay,
        "drain_timeout_seconds": drain_timeout,
        "health_port": health_port,
        "health_host": health_host,
        "metrics_without_key": metrics_without_key,
        "readiness_stall_seconds": readiness_stall,
        "liveness_timeout_seconds": liveness_timeout,
        "tls_cert_file": tls_cert_file,
        "tls_key_file": tls_key_file,
        "tls_client_ca_file": tls_client_ca_file,
        "cors_origins": tuple(cors_origin or ()) or None,
        "echo_faults": echo_faults,
        "vllm_metric_names": vllm_metric_names,
        "otlp_endpoint": otlp_endpoint,
        "trace_prompts": trace_prompts,
        "log_prompts": log_prompts,
        "log_level": log_level,
        "log_format": log_format,
    }
    configuration = load_configuration(given, config)
    if print_config:
        print(configuration.as_toml(), end="")
        return
    run_server(configuration)


register_generate(app)
register_keys(app)
register_engine_commands(app)
