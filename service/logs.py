"""Log lines for people or for machines. Prompts and answers are never written."""

from __future__ import annotations

import logging
import sys
import time

import orjson

from service.configuration import ENVIRONMENT_PREFIX, Configuration, closest_setting
from service.version import package_version

_EXTRA_FIELDS = ("request_id", "status", "seconds")


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00 INFO nybble.access GET /v1/models 200 request_id=... seconds=...`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the extra fields at its end."""
        extras = "".join(
            f" {name}={record.__dict__[name]}" for name in _EXTRA_FIELDS if name in record.__dict__
        )
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
        line.update({name: record.__dict__[name] for name in _EXTRA_FIELDS if name in record.__dict__})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


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
