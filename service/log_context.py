"""Which request a log line belongs to, wherever in its tasks the line is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

# Fields for every line that is written while the request is served.
log_fields: ContextVar[Mapping[str, str]] = ContextVar("nybble_log_fields")
