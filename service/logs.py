"""Log lines for people or for machines. Prompts and answers are written with `log_prompts` only."""

from __future__ import annotations

import logging
import sys
import time

import orjson

from service.configuration import ENVIRONMENT_PREFIX, Configuration, closest_setting
from service.log_context import log_fields
from service.version import package_version

_EXTRA_FIELDS = (
    "request_id",
    "trace_id",
    "key",
    "status",
    "seconds",
    "time_to_first_token_seconds",
    "tokenize_seconds",
    "queue_seconds",
    "prefill_seconds",
    "decode_seconds",
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_generated_tokens",
    "num_preemptions",
    "finish_reasons",
)


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00 INFO nybble.access GET /v1/models 200 request_id=... seconds=...`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the extra fields at its end."""
        extras = "".join(f" {name}={_plain(value)}" for name, value in _extra_fields(record).items())
        line = super().format(record)
        first, newline, rest = line.partition("\n")
        return f"{first}{extras}{newline}{rest}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in RFC 3339 (UTC), level, logger, message, the extra fields, a traceback if there is one."""
        seconds = time.gmtime(record.created)
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_extra_fields(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def _extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """The known ones the line was given, and those of the request it was written for."""
    fields = {**log_fields.get({}), **record.__dict__}
    return {name: fields[name] for name in _EXTRA_FIELDS if name in fields}


def _plain(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def configure_logs(level: str, log_format: str) -> None:
    """Send all logs to standard error. For processes of our own (the command line), not for libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn's lines about its own start and stop say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def log_configuration(configuration: Configuration, port: int, health_port: int | None) -> None:
    """Say once what is in force and who set it, and where the server listens. Secrets are masked."""
    log = logging.getLogger("nybble")
    settings = configuration.settings
    values = " ".join(
        f"{name}={value} ({source})" if source else f"{name}={value}"
        for name, value, source in configuration.shown()
        if name not in ("host", "port")
    )
    log.info("nybble %s %s", package_version(), values)
    for name in configuration.unknown_variables:
        close = closest_setting(name[len(ENVIRONMENT_PREFIX) :])
        hint = f"; did you mean {ENVIRONMENT_PREFIX}{close.upper()}?" if close else ""
        log.warning("the environment variable %s sets nothing%s", name, hint)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_cert_file else "http"
    if health_port is not None:
        log.info("health checks and metrics on port %d", health_port)
    log.info("listening on %s://%s:%d", scheme, host, port)
