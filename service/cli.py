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
from service.setting_flags import with_setting_flags
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
@with_setting_flags
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
    **settings: Any,
) -> None:
    """Serve a checkpoint over an OpenAI-compatible API.

    Settings can also come from the environment (NYBBLE_MAX_MODEL_LEN and so on) or from a file (--config). An
    option wins over the environment, that over the file. --print-config shows all and where they are from.
    """
    configuration = load_configuration({"checkpoint": checkpoint, **settings}, config)
    if print_config:
        print(configuration.as_toml(), end="")
        return
    run_server(configuration)


register_generate(app)
register_keys(app)
register_engine_commands(app)
